#include "program/gather.h"

#include <algorithm>

namespace capax {

void GatherOperation::run(Context& context, int rank) {
  const int64_t width = program_.width(from_);
  for (int64_t row = rank; row < context.step.n_logit_rows; row += context.team.size()) {
    const float* from = program_.rows(from_) + context.step.logit_rows[row] * width;
    std::copy(from, from + width, program_.rows(to_) + row * width);
  }
}

}  // namespace capax
