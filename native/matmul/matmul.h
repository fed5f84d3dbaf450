// Linear maps y[t, o] = sum_i x[t, i] * w[o, i] over packed weights.
//
// Weights are packed into groups of 16 output rows, so that one load feeds 16 accumulators.
// Rounding contract: y[t, o] is a function of x[t, :] and w[o, :] alone. Integer dot products
// run per 32-block and are exact; the float accumulation runs over the blocks in order, one
// accumulator per output. Batch size, tiling, thread count and residency cannot change a bit.
#pragma once

#include <stdint.h>

namespace capax {

enum class Encoding : int32_t {  // values are the GGML type ids
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30,
};

// Activations quantised to int8 in blocks of 32 inputs: x ~= d * q, d = max|x| / 127.
struct Q8Rows {
  int8_t* q;       // [n_tokens, n_in]
  float* d;        // [n_tokens, n_in / 32]
  float* s;        // [n_tokens, n_in / 32]   d * sum(q), for encodings with a minimum
  int32_t* sum16;  // [n_tokens, n_in / 16]   sum(q) per 16 inputs, for zero points and 16-wide sub-blocks
};

struct MatmulArgs {
  const uint8_t* groups;  // packed groups; groups[0] is group `group_begin`
  int64_t group_begin, group_end;  // this call's share, in groups of 16 output rows
  int64_t n_in, n_out;
  Q8Rows x;           // integer encodings
  const float* xf;    // float encodings: [n_tokens, n_in] with row stride ldx
  int64_t ldx;
  int64_t n_tokens;
  float* y;           // [n_tokens, n_out] with row stride ldy
  int64_t ldy;
  bool accumulate;    // y += instead of y =
};

using MatmulFn = void (*)(const MatmulArgs&);

struct MatmulKernels {
  // x: [n_tokens, n_in] float32 with row stride ldx; n_in % 32 == 0.
  void (*quantize_rows)(const float* x, int64_t ldx, int64_t n_tokens, int64_t n_in, Q8Rows out);
  MatmulFn f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k;
};

}  // namespace capax
