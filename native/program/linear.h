// Linear maps of one input, with what precedes and follows them fused in.
//
//   h = input row | rms_norm(input row) | silu(input row) * gate row
//   for each output: y (+)= W h (+ bias)
//
// All outputs of one operation share the input row and its int8 form; their output rows form
// one range of work in groups of 16 that the threads claim piece by piece.
//
// Rows whose logits are wanted are few, and what int8 rounds off them goes straight into the
// logits: integer weights multiply such a row twice, as int8 and then what that left as int8,
//   y = W q8(h) + W q8(h - q8(h)),
// which a decode step, bound by reading W, does beside the reading. On SmolLM2-135M Q4_1 the
// divergence from float32 activations falls by a quarter.
//
// With many rows each thread has rows of its own, from one operation to the next: they stay in its
// cache, where a split by output rows would move every activation between the cores. W is then read
// once for each thread, which so many rows pay for.
#pragma once

#include <vector>

#include "program/program.h"

namespace capax {

class LinearOperation : public Operation {
 public:
  struct Output {
    const Weight* weight;
    std::vector<float> bias;  // [n_out] or empty
    int buffer;  // neither read by this operation nor written by another of its outputs
  };

  // norm: gain [n_in] of an RMS norm, or empty. up: buffer multiplied by silu(input), or -1.
  // Outputs have as many rows as the input: one for each token, or for each logit row.
  LinearOperation(Program& program, int input, int64_t n_in, std::vector<float> norm, float norm_eps,
                  int up, bool accumulate);
  void add_output(Output output);
  int input() const { return input_; }

  void prepare(const Step& step, int n_threads) override;
  void run(Context& context, int rank) override;
  // The int8/float form of `n_rows` input rows needs this much memory.
  int64_t prepared_nbytes(int64_t n_rows) const;

 private:
  struct Prepared {
    Q8Rows q8;
    float* rows;  // nullptr unless needed
  };
  Prepared layout(uint8_t* memory, int64_t n_rows) const;
  // Groups [from, to) of all outputs together, for rows [first, last) that begin and end at tiles' borders.
  void multiply(Context& context, const Prepared& prepared, int64_t from, int64_t to, int64_t first, int64_t last,
                uint8_t* scratch) const;
  // Rows [begin, end), begin at a tile's border; temporary: [kTokenTile, n_in].
  void prepare_rows(Context& context, const Prepared& prepared, int64_t begin, int64_t end, float* temporary) const;
  // doubled: [2 * n, n_in], each of `rows` followed by what its int8 form leaves of it.
  void double_rows(Context& context, const float* rows, int64_t ldx, int64_t n, float* doubled, const Q8Rows& one) const;
  // Groups [first, last) of an output over doubled rows, y: the first of n; sums: [2 * n, 16 * kDoubledGroups].
  void run_doubled(const Output& output, int64_t first, int64_t last, const Q8Rows& rows, int64_t n, float* y,
                   float* sums, uint8_t* weight_scratch) const;
  int64_t n_rows(const Step& step) const { return program_.gathered(input_) ? step.n_logit_rows : step.n_tokens; }

  Program& program_;
  int input_;
  int64_t n_in_;
  std::vector<float> norm_;
  float norm_eps_;
  int up_;
  bool accumulate_;
  bool needs_integer_ = false;
  bool needs_float_ = false;
  bool doubles_ = false;
  bool is_streamed_ = false;  // by any output: its weight is read once for each call
  int64_t n_groups_ = 0;
  Shares shares_;
  int64_t weight_scratch_nbytes_ = 0;
  std::vector<Output> outputs_;
  // Operation scratch: [prepared rows | per rank: prepared rows, a tile of rows, one row as int8
  // and sums where rows are doubled, weight scratch]
  int64_t temporary_nbytes_ = 0;
  int64_t shared_nbytes_ = 0;
  int64_t rank_nbytes_ = 0;
  int64_t one_nbytes_ = 0;
  int64_t sums_nbytes_ = 0;
};

}  // namespace capax
