// Choose a token from each logit row whose sampler came with the step.
#pragma once

#include "program/program.h"
#include "sampling/sampler.h"

namespace capax {

class SampleOperation : public Operation {
 public:
  SampleOperation(Program& program, int logits) : program_(program), logits_(logits) {}

  void prepare(const Step& step, int n_threads) override;
  void run(Context& context, int rank) override;

 private:
  int64_t rank_floats() const { return (sample_scratch_floats(program_.width(logits_)) + 15) / 16 * 16; }

  Program& program_;
  int logits_;
};

}  // namespace capax
