// Row-wise operations: exponential, softmax, RMS and layer norm, rotary embedding, SwiGLU, GELU.
//
// Every function works on rows of float32 and gives the same bits on every instruction set: a
// reduction over n values runs over four accumulators of 16 lanes, value i belongs to lane i % 16 of
// accumulator (i / 16) % 4, then ((a0 + a1) + (a2 + a3)) and the tree of `hsum`. The order is a
// function of n only. Output may be the same array as the input unless said otherwise.
#pragma once

#include <stdint.h>

namespace capax {

// Which elements of a head a rotation pairs: (2i, 2i + 1), as GGUF files of the Llama family are
// stored, or (i, i + rope_dim / 2), as Hugging Face checkpoints are.
enum class RopeStyle : int32_t { interleaved = 0, half = 1 };

struct NormKernels {
  // out[i] = exp(x[i]); 0 below -87, infinite above 88.72, NaN for NaN. Below 2 ulp.
  void (*exp)(const float* x, int64_t n, float* out);
  // out = softmax(x) over n >= 1 values.
  void (*softmax)(const float* x, int64_t n, float* out);
  // log(sum(exp(x))) over n >= 1 values. NaN if any value is NaN or +inf.
  float (*logsumexp)(const float* x, int64_t n);
  // Per row: out = (x / sqrt(mean(x^2) + eps)) * weight. x, out: [n_rows, n]; weight: [n].
  // The QK norm of Qwen3 is n_rows = heads, n = head_dim.
  void (*rms_norm)(const float* x, int64_t n_rows, int64_t n, const float* weight, float eps, float* out);
  // Per row: out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias. weight, bias: [n].
  void (*layer_norm)(const float* x, int64_t n_rows, int64_t n, const float* weight, const float* bias, float eps,
                     float* out);
  // Rotate in place the first rope_dim (even) elements of each head of one row x: [n_heads, head_dim].
  // cos, sin: [rope_dim / 2] of the row's position.
  void (*rope)(float* x, int64_t n_heads, int64_t head_dim, int64_t rope_dim, const float* cos, const float* sin,
               RopeStyle style);
  // out = silu(gate) * up, silu(g) = g / (1 + exp(-g)).
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  // out = x * Phi(x), Phi the normal distribution: GELU as it is defined, by erf and not by tanh.
  // Relative error below 2e-6 down to x = -13, behind which the result is zero.
  void (*gelu)(const float* x, int64_t n, float* out);
  // x += y.
  void (*add)(float* x, const float* y, int64_t n);
};

}  // namespace capax
