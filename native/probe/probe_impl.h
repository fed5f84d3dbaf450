// Inner loops of the probe. Operands go through an empty asm, so that no compiler can see that a
// loop's result is known or unused.
#pragma once

#include "isa/isa.h"
#include "matmul/matmul_impl.h"
#include "probe/probe.h"

namespace {

template <class Isa>
int32_t probe_read_sum(const uint8_t* data, int64_t nbytes) {
  using I = typename Isa::I;
  I sum[8];
  for (int k = 0; k < 8; ++k) sum[k] = Isa::izero();
  // 1 KiB a round: sixteen loads and adds of 64 bytes in eight chains.
  for (int64_t at = 0; at < nbytes; at += 1024) {
    const int32_t* p = reinterpret_cast<const int32_t*>(data + at);
    for (int k = 0; k < 8; ++k) sum[k] = Isa::iadd(sum[k], Isa::iload(p + 16 * k));
    for (int k = 0; k < 8; ++k) sum[k] = Isa::iadd(sum[k], Isa::iload(p + 128 + 16 * k));
  }
  int32_t lanes[16];
  for (int k = 1; k < 8; ++k) sum[0] = Isa::iadd(sum[0], sum[k]);
  Isa::istore(lanes, sum[0]);
  int32_t total = 0;
  for (const int32_t lane : lanes) total ^= lane;
  return total;
}

// Chains of dependent instructions side by side: at least latency times throughput (4 x 2 on
// the machines at hand), and no more registers than there are.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kProbeChains = 6;  // sixteen lanes are two registers of sixteen
#else
constexpr int kProbeChains = 12;
#endif

template <class Isa>
float probe_f32_fmas(int64_t n_rounds) {
  using F = typename Isa::F;
  F acc[kProbeChains];
  for (int k = 0; k < kProbeChains; ++k) acc[k] = Isa::set1(static_cast<float>(k));
  const F a = Isa::set1(n_rounds > 0 ? 0.999f : 1.0f), b = Isa::set1(1e-3f);
  for (int64_t i = 0; i < n_rounds; ++i) {
    for (int k = 0; k < kProbeChains; ++k) acc[k] = Isa::fma(acc[k], a, b);
  }
  for (int k = 1; k < kProbeChains; ++k) acc[0] = Isa::add(acc[0], acc[k]);
  return Isa::hsum(acc[0]);
}

// One instruction (or the shortest sequence) that multiplies 64 pairs of bytes and adds fours.
template <class Isa>
inline typename Isa::I probe_dot64(typename Isa::I acc, typename Isa::I w, typename Isa::I x) {
  int32_t a[16], b[16], c[16];
  Isa::istore(a, acc), Isa::istore(b, w), Isa::istore(c, x);
  const uint8_t* u = reinterpret_cast<const uint8_t*>(b);
  const int8_t* s = reinterpret_cast<const int8_t*>(c);
  for (int i = 0; i < 64; ++i)  // wraps
    a[i / 4] = static_cast<int32_t>(static_cast<uint32_t>(a[i / 4]) + static_cast<uint32_t>(u[i] * s[i]));
  return Isa::iload(a);
}
#if defined(__AVX512VNNI__)
template <>
inline Avx512::I probe_dot64<Avx512>(Avx512::I acc, Avx512::I w, Avx512::I x) {
  return _mm512_dpbusd_epi32(acc, w, x);
}
#elif defined(__AVX2__)
template <>
inline Avx2::I probe_dot64<Avx2>(Avx2::I acc, Avx2::I w, Avx2::I x) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(w.lo, x.lo), ones)),
          _mm256_add_epi32(acc.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(w.hi, x.hi), ones))};
}
#elif defined(__ARM_FEATURE_DOTPROD)
template <>
inline Neon::I probe_dot64<Neon>(Neon::I acc, Neon::I w, Neon::I x) {
  for (int k = 0; k < 4; ++k)
    acc.v[k] = vdotq_s32(acc.v[k], vreinterpretq_s8_s32(w.v[k]), vreinterpretq_s8_s32(x.v[k]));
  return acc;
}
#endif

template <class Isa>
int32_t probe_int8_dots(int64_t n_rounds) {
  using I = typename Isa::I;
  constexpr int Chains = sizeof(I) == 64 && kProbeChains == 12 ? 12 : 3;
  I acc[Chains];
  for (int k = 0; k < Chains; ++k) acc[k] = Isa::iset1(k);
  I w = Isa::iset1(0x01020304), x = Isa::iset1(0x05fb0701);
  for (int64_t i = 0; i < n_rounds; ++i) {
#if defined(__AVX512VNNI__)
    asm volatile("" : "+v"(w), "+v"(x));
#elif defined(__AVX2__)
    asm volatile("" : "+x"(w.lo), "+x"(w.hi), "+x"(x.lo), "+x"(x.hi));  // or the product is hoisted
#elif defined(__ARM_FEATURE_DOTPROD)
    asm volatile("" : "+w"(w.v[0]), "+w"(x.v[0]));
#else
    asm volatile("" : "+m"(w), "+m"(x));
#endif
    for (int k = 0; k < Chains; ++k) acc[k] = probe_dot64<Isa>(acc[k], w, x);
  }
  int32_t lanes[16];
  for (int k = 1; k < Chains; ++k) acc[0] = Isa::iadd(acc[0], acc[k]);
  Isa::istore(lanes, acc[0]);
  int32_t total = 0;
  for (const int32_t lane : lanes) total ^= lane;
  return total;
}

template <class Isa>
constexpr capax::ProbeKernels probe_kernels() {
  capax::ProbeKernels k{};
  k.read_sum = &probe_read_sum<Isa>;
  k.int8_dots = &probe_int8_dots<Isa>;
  k.int8_macs_per_round = 64 * (kProbeChains == 12 ? 12 : 3);
  k.f32_fmas = &probe_f32_fmas<Isa>;
  k.f32_fmas_per_round = 16 * kProbeChains;
  return k;
}

}  // namespace
