#pragma once

#include <math.h>

#include "isa/isa.h"
#include "norms/exp.h"
#include "norms/norms.h"

namespace {

// Sum of four accumulators in the fixed order of norms.h.
template <class Isa>
static inline float sum_of_four(const typename Isa::F acc[4]) {
  return Isa::hsum(Isa::add(Isa::add(acc[0], acc[1]), Isa::add(acc[2], acc[3])));
}

// Largest of n >= 1 values. NaN values are ignored here; the sums that follow carry them.
template <class Isa>
static inline float row_max(const float* x, int64_t n) {
  using F = typename Isa::F;
  const F lowest = Isa::set1(-__builtin_inff());
  F m[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int a = 0; a < 4; ++a) m[a] = Isa::max(Isa::load(x + i + 16 * a), m[a]);
  for (; i + 16 <= n; i += 16) m[0] = Isa::max(Isa::load(x + i), m[0]);
  if (i < n) m[0] = Isa::max(Isa::load_n(x + i, static_cast<int>(n - i), -__builtin_inff()), m[0]);
  return Isa::hmax(Isa::max(Isa::max(m[0], m[1]), Isa::max(m[2], m[3])));
}

// Sum of exp(x - max) over the row; each term is written to out unless out is null.
template <class Isa>
static inline float sum_exp(const float* x, int64_t n, float max, float* out) {
  using F = typename Isa::F;
  const F top = Isa::set1(max);
  F acc[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int a = 0; a < 4; ++a) {
      const F e = exp_nonpositive<Isa>(Isa::sub(Isa::load(x + i + 16 * a), top));
      acc[a] = Isa::add(acc[a], e);
      if (out) Isa::store(out + i + 16 * a, e);
    }
  }
  for (int a = 0; i < n; i += 16, ++a) {
    const int valid = n - i < 16 ? static_cast<int>(n - i) : 16;
    // The exponential of a lane beyond the row is exactly 0.
    const F e = exp_nonpositive<Isa>(Isa::sub(Isa::load_n(x + i, valid, -__builtin_inff()), top));
    acc[a] = Isa::add(acc[a], e);
    if (out) Isa::store_n(out + i, e, valid);
  }
  return sum_of_four<Isa>(acc);
}

template <class Isa>
static void exp_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int valid = n - i < 16 ? static_cast<int>(n - i) : 16;
    Isa::store_n(out + i, exp_lanes<Isa>(Isa::load_n(x + i, valid, 0.0f)), valid);
  }
}

template <class Isa>
static void softmax_row(const float* x, int64_t n, float* out) {
  const float sum = sum_exp<Isa>(x, n, row_max<Isa>(x, n), out);
  const typename Isa::F total = Isa::set1(sum);
  for (int64_t i = 0; i < n; i += 16) {
    const int valid = n - i < 16 ? static_cast<int>(n - i) : 16;
    Isa::store_n(out + i, Isa::div(Isa::load_n(out + i, valid, 0.0f), total), valid);
  }
}

template <class Isa>
static float logsumexp_row(const float* x, int64_t n) {
  const float max = row_max<Isa>(x, n);
  const float sum = sum_exp<Isa>(x, n, max, nullptr);
  return static_cast<float>(static_cast<double>(max) + log(static_cast<double>(sum)));
}

template <class Isa>
static void rms_norm_rows(const float* x, int64_t n_rows, int64_t n, const float* weight, float eps, float* out) {
  using F = typename Isa::F;
  for (int64_t row = 0; row < n_rows; ++row, x += n, out += n) {
    F acc[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
      for (int a = 0; a < 4; ++a) {
        const F v = Isa::load(x + i + 16 * a);
        acc[a] = Isa::fma(v, v, acc[a]);
      }
    }
    for (int a = 0; i < n; i += 16, ++a) {
      const F v = Isa::load_n(x + i, n - i < 16 ? static_cast<int>(n - i) : 16, 0.0f);
      acc[a] = Isa::fma(v, v, acc[a]);
    }
    const float mean = sum_of_four<Isa>(acc) / static_cast<float>(n);
    const F scale = Isa::set1(1.0f / sqrtf(mean + eps));
    for (i = 0; i + 16 <= n; i += 16)
      Isa::store(out + i, Isa::mul(Isa::mul(Isa::load(x + i), scale), Isa::load(weight + i)));
    if (i < n) {
      const int valid = static_cast<int>(n - i);
      const F v = Isa::mul(Isa::load_n(x + i, valid, 0.0f), scale);
      Isa::store_n(out + i, Isa::mul(v, Isa::load_n(weight + i, valid, 0.0f)), valid);
    }
  }
}

template <class Isa>
static void layer_norm_rows(const float* x, int64_t n_rows, int64_t n, const float* weight, const float* bias,
                            float eps, float* out) {
  using F = typename Isa::F;
  for (int64_t row = 0; row < n_rows; ++row, x += n, out += n) {
    // Sum of four accumulators of term(16 values); `fill` stands behind the end of the row.
    const auto sum = [&](auto term, float fill) {
      F acc[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
      int64_t i = 0;
      for (; i + 64 <= n; i += 64)
        for (int a = 0; a < 4; ++a) acc[a] = term(Isa::load(x + i + 16 * a), acc[a]);
      for (int a = 0; i < n; i += 16, ++a)
        acc[a] = term(Isa::load_n(x + i, n - i < 16 ? static_cast<int>(n - i) : 16, fill), acc[a]);
      return sum_of_four<Isa>(acc);
    };
    const float mean = sum([](F v, F acc) { return Isa::add(acc, v); }, 0.0f) / static_cast<float>(n);
    const F middle = Isa::set1(mean);
    const float variance = sum(
                               [middle](F v, F acc) {
                                 const F d = Isa::sub(v, middle);
                                 return Isa::fma(d, d, acc);
                               },
                               mean) /
                           static_cast<float>(n);
    const F scale = Isa::set1(1.0f / sqrtf(variance + eps));
    for (int64_t i = 0; i < n; i += 16) {
      const int valid = n - i < 16 ? static_cast<int>(n - i) : 16;
      const F v = Isa::mul(Isa::sub(Isa::load_n(x + i, valid, 0.0f), middle), scale);
      Isa::store_n(out + i, Isa::fma(v, Isa::load_n(weight + i, valid, 0.0f), Isa::load_n(bias + i, valid, 0.0f)),
                   valid);
    }
  }
}

// Both styles compute a' = a cos - b sin and b' = b cos + a sin with one rounding after the product
// with cos and one after the sum; the compiler vectorises the plain loops without changing a bit.
template <class Isa>
static void rope_row(float* x, int64_t n_heads, int64_t head_dim, int64_t rope_dim, const float* __restrict cos,
                     const float* __restrict sin, capax::RopeStyle style) {
  using F = typename Isa::F;
  const int64_t half = rope_dim / 2;
  for (int64_t head = 0; head < n_heads; ++head, x += head_dim) {
    if (style == capax::RopeStyle::half) {
      for (int64_t i = 0; i < half; i += 16) {
        const int valid = half - i < 16 ? static_cast<int>(half - i) : 16;
        const F a = Isa::load_n(x + i, valid, 0.0f);
        const F b = Isa::load_n(x + half + i, valid, 0.0f);
        const F c = Isa::load_n(cos + i, valid, 0.0f);
        const F s = Isa::load_n(sin + i, valid, 0.0f);
        Isa::store_n(x + i, Isa::fnma(b, s, Isa::mul(a, c)), valid);
        Isa::store_n(x + half + i, Isa::fma(a, s, Isa::mul(b, c)), valid);
      }
    } else {
      float* __restrict pairs = x;
      for (int64_t i = 0; i < half; ++i) {
        const float a = pairs[2 * i], b = pairs[2 * i + 1];
        pairs[2 * i] = __builtin_fmaf(-b, sin[i], a * cos[i]);
        pairs[2 * i + 1] = __builtin_fmaf(a, sin[i], b * cos[i]);
      }
    }
  }
}

template <class Isa>
static inline typename Isa::F swiglu_lanes(typename Isa::F gate, typename Isa::F up) {
  const auto denominator = Isa::add(exp_lanes<Isa>(Isa::sub(Isa::zero(), gate)), Isa::set1(1.0f));
  return Isa::mul(Isa::div(gate, denominator), up);
}

template <class Isa>
static void swiglu_row(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Isa::store(out + i, swiglu_lanes<Isa>(Isa::load(gate + i), Isa::load(up + i)));
  if (i < n) {
    const int valid = static_cast<int>(n - i);
    Isa::store_n(out + i, swiglu_lanes<Isa>(Isa::load_n(gate + i, valid, 0.0f), Isa::load_n(up + i, valid, 0.0f)), valid);
  }
}

// x Phi(x) from the lower tail, so that nothing cancels for negative x:
//
//   Phi(-a) = exp(-a^2 / 2) t P(t),  t = 1 / (1 + 0.35 a),  a = |x|
//
// P is minimax of degree 8 in the relative error, 3.2e-8 for a in [0, 13].
template <class Isa>
static inline typename Isa::F gelu_lanes(typename Isa::F x) {
  using F = typename Isa::F;
  const F a = Isa::abs(x);
  const F t = Isa::div(Isa::set1(1.0f), Isa::fma(a, Isa::set1(0.35f), Isa::set1(1.0f)));
  F p = Isa::set1(-0.029115119948983192f);
  p = Isa::fma(p, t, Isa::set1(0.1438189148902893f));
  p = Isa::fma(p, t, Isa::set1(-0.2553919851779938f));
  p = Isa::fma(p, t, Isa::set1(0.15879763662815094f));
  p = Isa::fma(p, t, Isa::set1(-0.022844132035970688f));
  p = Isa::fma(p, t, Isa::set1(0.10539242625236511f));
  p = Isa::fma(p, t, Isa::set1(0.11986302584409714f));
  p = Isa::fma(p, t, Isa::set1(0.13985757529735565f));
  p = Isa::fma(p, t, Isa::set1(0.13962166011333466f));
  const F e = exp_nonpositive<Isa>(Isa::mul(Isa::mul(a, a), Isa::set1(-0.5f)));
  const F tail = Isa::mul(Isa::mul(p, t), e);
  const F phi = Isa::lt_select(x, Isa::zero(), tail, Isa::sub(Isa::set1(1.0f), tail));
  return Isa::mul(x, phi);
}

template <class Isa>
static void gelu_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int valid = n - i < 16 ? static_cast<int>(n - i) : 16;
    Isa::store_n(out + i, gelu_lanes<Isa>(Isa::load_n(x + i, valid, 0.0f)), valid);
  }
}

template <class Isa>
static void add_row(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Isa::store(x + i, Isa::add(Isa::load(x + i), Isa::load(y + i)));
  for (; i < n; ++i) x[i] = x[i] + y[i];
}

template <class Isa>
constexpr capax::NormKernels norm_kernels() {
  return {exp_row<Isa>,         softmax_row<Isa>, logsumexp_row<Isa>, rms_norm_rows<Isa>,
          layer_norm_rows<Isa>, rope_row<Isa>,    swiglu_row<Isa>,    gelu_row<Isa>,
          add_row<Isa>};
}

}  // namespace
