#include "kv/retention_gate.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "kernels.h"

namespace capax {
namespace {

constexpr float kEps = 1e-12f;

// log(1 / (1 + exp(-z))) without overflow: near 0 it must not round to 0, tokens would tie.
float log_sigmoid(double z) {
  return static_cast<float>(std::min(z, 0.0) - std::log1p(std::exp(-std::fabs(z))));
}

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};

}  // namespace

void RetentionGate::log_beta(const float* x, int64_t n_tokens, float* out) const {
  const int64_t d_model = w1->n_in(), width = w1->n_out(), n_heads = static_cast<int64_t>(bias.size());
  const std::vector<float> ones(static_cast<size_t>(std::max(d_model, width)), 1.0f);
  std::vector<float> rows, hidden(static_cast<size_t>(n_tokens * width));
  const NormKernels& norms = kernels().norms;
  if (normalise) {
    rows.resize(static_cast<size_t>(n_tokens * d_model));
    norms.rms_norm(x, n_tokens, d_model, ones.data(), kEps, rows.data());
    x = rows.data();
  }
  const size_t scratch_nbytes = static_cast<size_t>((w1->scratch_nbytes() + 64) / 64 * 64);
  const std::unique_ptr<uint8_t, Free> scratch(static_cast<uint8_t*>(std::aligned_alloc(64, scratch_nbytes)));
  if (!scratch) throw std::bad_alloc();
  w1->matmul_groups(0, w1->n_groups(), Q8Rows{}, x, d_model, n_tokens, hidden.data(), width, false, scratch.get());
  for (int64_t t = 0; t < n_tokens; ++t) {
    float* h = hidden.data() + t * width;
    norms.add(h, b1.data(), width);
    norms.swiglu(h, ones.data(), width, h);
    for (int64_t head = 0; head < n_heads; ++head) {
      double z = bias[static_cast<size_t>(head)];
      for (int64_t i = 0; i < width; ++i) z += static_cast<double>(w2[static_cast<size_t>(head * width + i)]) * h[i];
      out[head * n_tokens + t] = log_sigmoid(z);
    }
  }
}

}  // namespace capax
