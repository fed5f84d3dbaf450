// The exponential of the 16-lane machine, shared by norms, attention and sampling.
#pragma once

#include "isa/isa.h"

namespace {

// exp(x) of 16 lanes, below 2 ulp where the result is a normal float.
//
//   x = n ln2 + r, |r| <= ln2/2:  exp(x) = 2^n (1 + r + r^2 P(r)),  P minimax of degree 4 (4e-9)
//
// Below -87 the result is exactly 0, so no denormal is ever made; above 88.72283 it is infinite;
// NaN gives NaN; exp(0) is exactly 1. ln2 is split so that n * hi is exact.
template <class Isa>
static inline typename Isa::F exp_lanes(typename Isa::F x) {
  using F = typename Isa::F;
  // max(a, b) is `a > b ? a : b`: a NaN becomes -125 here, but r keeps it.
  F n = Isa::round(Isa::mul(x, Isa::set1(1.44269504f)));
  n = Isa::min(Isa::max(n, Isa::set1(-125.0f)), Isa::set1(128.0f));
  F r = Isa::fnma(n, Isa::set1(0.693359375f), x);
  r = Isa::fnma(n, Isa::set1(-2.1219444e-4f), r);
  F p = Isa::set1(0.0013814467f);
  p = Isa::fma(p, r, Isa::set1(0.008368781f));
  p = Isa::fma(p, r, Isa::set1(0.041668393f));
  p = Isa::fma(p, r, Isa::set1(0.1666652f));
  p = Isa::fma(p, r, Isa::set1(0.49999994f));
  p = Isa::fma(p, r, Isa::set1(1.0f));
  p = Isa::fma(p, r, Isa::set1(1.0f));
  // In two factors, because 2^128 is not a float.
  F y = Isa::mul(Isa::mul(p, Isa::exp2i(Isa::sub(n, Isa::set1(1.0f)))), Isa::set1(2.0f));
  y = Isa::lt_select(x, Isa::set1(-87.0f), Isa::zero(), y);
  return Isa::lt_select(Isa::set1(88.72283f), x, Isa::set1(__builtin_inff()), y);
}

// exp(x) for x <= 0, as a softmax needs it after subtracting the maximum: the same bits as
// exp_lanes with less work.
template <class Isa>
static inline typename Isa::F exp_nonpositive(typename Isa::F x) {
  using F = typename Isa::F;
  const F n = Isa::max(Isa::round(Isa::mul(x, Isa::set1(1.44269504f))), Isa::set1(-126.0f));
  F r = Isa::fnma(n, Isa::set1(0.693359375f), x);
  r = Isa::fnma(n, Isa::set1(-2.1219444e-4f), r);
  F p = Isa::set1(0.0013814467f);
  p = Isa::fma(p, r, Isa::set1(0.008368781f));
  p = Isa::fma(p, r, Isa::set1(0.041668393f));
  p = Isa::fma(p, r, Isa::set1(0.1666652f));
  p = Isa::fma(p, r, Isa::set1(0.49999994f));
  p = Isa::fma(p, r, Isa::set1(1.0f));
  p = Isa::fma(p, r, Isa::set1(1.0f));
  return Isa::lt_select(x, Isa::set1(-87.0f), Isa::zero(), Isa::mul(p, Isa::exp2i(n)));
}

}  // namespace
