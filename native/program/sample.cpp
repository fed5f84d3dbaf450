#include "program/sample.h"

#include <algorithm>

namespace capax {

void SampleOperation::prepare(const Step& step, int n_threads) {
  if (!step.samplers) return;
  const int64_t n_ranks = std::min<int64_t>(n_threads, step.n_logit_rows);
  program_.operation_scratch().reserve(n_ranks * rank_floats() * static_cast<int64_t>(sizeof(float)));
}

void SampleOperation::run(Context& context, int rank) {
  const Step& step = context.step;
  if (!step.samplers) return;
  float* scratch = reinterpret_cast<float*>(program_.operation_scratch().reserve(0)) + rank * rank_floats();
  const int64_t vocab_size = program_.width(logits_);
  for (int64_t row = rank; row < step.n_logit_rows; row += context.team.size()) {
    const SampleRequest request = step.samplers[row]->request(program_.rows(logits_) + row * vocab_size, vocab_size);
    SampleResult& result = step.results[row];
    result.status = context.kernels.sampling.sample(request, scratch, &result.chosen, result.top.data());
  }
}

}  // namespace capax
