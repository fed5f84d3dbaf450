#include "program/rowwise.h"

#include <algorithm>

namespace capax {
namespace {

// The rows that a thread works on.
struct Share {
  int64_t begin, end;
};
Share share_of(const Context& context, int rank) {
  const int64_t n = context.step.n_tokens, size = context.team.size();
  return {n * rank / size, n * (rank + 1) / size};
}

}  // namespace

void PositionOperation::run(Context& context, int rank) {
  const auto [begin, end] = share_of(context, rank);
  const int64_t width = program_.width(x_);
  for (const SequenceSlice& sequence : context.step.sequences) {
    const int64_t last = std::min(sequence.token_end, end);
    for (int64_t t = std::max(sequence.token_begin, begin); t < last; ++t) {
      const int64_t position = sequence.position0 + t - sequence.token_begin;
      context.kernels.norms.add(program_.rows(x_) + t * width, table_ + position * width, width);
    }
  }
}

void LayerNormOperation::run(Context& context, int rank) {
  const auto [begin, end] = share_of(context, rank);
  const int64_t width = program_.width(x_);
  float* rows = program_.rows(x_) + begin * width;
  context.kernels.norms.layer_norm(rows, end - begin, width, weight_.data(), bias_.data(), eps_, rows);
}

void GeluOperation::run(Context& context, int rank) {
  const auto [begin, end] = share_of(context, rank);
  const int64_t width = program_.width(x_);
  float* rows = program_.rows(x_) + begin * width;
  context.kernels.norms.gelu(rows, (end - begin) * width, rows);
}

}  // namespace capax
