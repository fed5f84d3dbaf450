// The gate of TRIM-KV (arXiv 2512.03324): how long a token will be worth keeping, from the input of
// its layer's attention.
//
//   h = silu(W1 x + b1) [width];  log beta = logsigmoid(W2 h + bias) [n_kv_heads]
//
// x is divided by its root mean square first if `normalise`. W1 is bfloat16: a decoded token reads all
// of it. A row's bits do not depend on the rows beside it.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

#include "matmul/weight.h"

namespace capax {

struct RetentionGate {
  std::shared_ptr<Weight> w1;  // [width, d_model]
  std::vector<float> b1;       // [width]
  std::vector<float> w2;       // [n_kv_heads, width]
  std::vector<float> bias;     // [n_kv_heads]
  bool normalise;

  // x: [n_tokens, d_model] -> out: [n_kv_heads, n_tokens], at most 0.
  void log_beta(const float* x, int64_t n_tokens, float* out) const;
};

}  // namespace capax
