#include "program/embed.h"

#include <exception>

namespace capax {

void EmbedOperation::run(Context& context, int rank) {
  const int64_t n = context.step.n_tokens, size = context.team.size();
  const int64_t begin = n * rank / size, end = n * (rank + 1) / size;
  try {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t token = context.step.tokens[t];
      table_->rows(&token, 1, program_.rows(out_) + t * program_.width(out_));
    }
  } catch (const std::exception& error) {
    context.fail(error.what());
  }
}

}  // namespace capax
