#pragma once

#include "attention/landmark.h"
#include "isa/isa.h"

namespace {

// Lane j of the accumulator holds the products of elements j, j + 16, ...; then the tree of hsum.
template <class Isa>
static void landmark_scores(const float* q, const float* keys, int64_t n, int64_t head_dim, float scale, float* out) {
  using F = typename Isa::F;
  for (int64_t i = 0; i < n; ++i, keys += head_dim) {
    F sum = Isa::zero();
    int64_t j = 0;
    for (; j + 16 <= head_dim; j += 16) sum = Isa::fma(Isa::load(q + j), Isa::load(keys + j), sum);
    if (j < head_dim) {
      const int valid = static_cast<int>(head_dim - j);
      sum = Isa::fma(Isa::load_n(q + j, valid, 0.0f), Isa::load_n(keys + j, valid, 0.0f), sum);
    }
    out[i] = scale * Isa::hsum(sum);
  }
}

template <class Isa>
static void landmark_accumulate(const float* weights, const float* values, int64_t n, int64_t head_dim, float* out) {
  using F = typename Isa::F;
  for (int64_t j = 0; j < head_dim; j += 16) {
    const int valid = head_dim - j < 16 ? static_cast<int>(head_dim - j) : 16;
    F sum = Isa::load_n(out + j, valid, 0.0f);
    for (int64_t i = 0; i < n; ++i)
      sum = Isa::fma(Isa::set1(weights[i]), Isa::load_n(values + i * head_dim + j, valid, 0.0f), sum);
    Isa::store_n(out + j, sum, valid);
  }
}

template <class Isa>
static capax::LandmarkKernels landmark_kernels() {
  return {landmark_scores<Isa>, landmark_accumulate<Isa>};
}

}  // namespace
