// Block dot products on AVX-512 VNNI: a block is eight registers, one vpdpbusd with an
// embedded broadcast advances 16 rows by 4 inputs.
#pragma once

#include "isa/avx512.h"
#include "matmul/dot.h"

namespace {

template <>
struct Dot<Avx512> {
  using I = __m512i;
  static constexpr int max_tokens = 16, step = 4;
  static constexpr bool sums_in_registers = true;
  struct Block {
    __m512i v[8];
  };

  template <class Fmt>
  static inline CAPAX_ALWAYS_INLINE void unpack(const uint8_t* p, Block& w) {
    const auto at = [&](int k) { return _mm512_loadu_si512(p + 64 * k); };
    if constexpr (Fmt::bits == 8) {
      for (int v = 0; v < 8; ++v) w.v[v] = at(v);
    }
    if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
      const __m512i mask = _mm512_set1_epi8(15);
      for (int k = 0; k < 4; ++k) {
        const __m512i both = at(k);
        w.v[k] = _mm512_and_si512(both, mask);
        w.v[k + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
      }
    }
    // The 2-bit planes come after the nibbles, or first when there are none.
    if constexpr (Fmt::bits == 6) {
      const __m512i mask = _mm512_set1_epi8(0x30);
      for (int j = 0; j < 2; ++j) {
        const __m512i plane = at(4 + j);
        w.v[4 * j] = merge(w.v[4 * j], _mm512_slli_epi16(plane, 4), mask);
        w.v[4 * j + 1] = merge(w.v[4 * j + 1], _mm512_slli_epi16(plane, 2), mask);
        w.v[4 * j + 2] = merge(w.v[4 * j + 2], plane, mask);
        w.v[4 * j + 3] = merge(w.v[4 * j + 3], _mm512_srli_epi16(plane, 2), mask);
      }
    }
    if constexpr (Fmt::bits == 2 || Fmt::bits == 3) {
      const __m512i mask = _mm512_set1_epi8(3);
      for (int j = 0; j < 2; ++j) {
        const __m512i plane = at(j);
        w.v[4 * j] = _mm512_and_si512(plane, mask);
        w.v[4 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(plane, 2), mask);
        w.v[4 * j + 2] = _mm512_and_si512(_mm512_srli_epi16(plane, 4), mask);
        w.v[4 * j + 3] = _mm512_and_si512(_mm512_srli_epi16(plane, 6), mask);
      }
    }
    if constexpr (Fmt::bits == 5) {
      const __m512i mask = _mm512_set1_epi8(0x10);
      const __m512i plane = at(4);
      for (int v = 0; v < 4; ++v) w.v[v] = merge(w.v[v], _mm512_slli_epi16(plane, 4 - v), mask);
      for (int v = 4; v < 8; ++v) w.v[v] = merge(w.v[v], _mm512_srli_epi16(plane, v - 4), mask);
    }
    if constexpr (Fmt::bits == 3) {
      const __m512i mask = _mm512_set1_epi8(4);
      const __m512i plane = at(2);
      for (int v = 0; v < 2; ++v) w.v[v] = merge(w.v[v], _mm512_slli_epi16(plane, 2 - v), mask);
      for (int v = 2; v < 8; ++v) w.v[v] = merge(w.v[v], _mm512_srli_epi16(plane, v - 2), mask);
    }
  }
  static inline __m512i merge(__m512i low, __m512i shifted, __m512i mask) {
    return _mm512_ternarylogic_epi32(low, shifted, mask, 0xf8);  // low | (shifted & mask)
  }
  static inline __m512i broadcast4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  template <class Fmt>
  static inline __m512i start(int32_t minus_sum) {
    if constexpr (Fmt::zero == 0) return _mm512_setzero_si512();
    return _mm512_slli_epi32(_mm512_set1_epi32(minus_sum), Fmt::zero_shift);
  }
  template <class Fmt, int N>
  static inline CAPAX_ALWAYS_INLINE void dot32(const Block& w, const int8_t* x, const int32_t* n32,
                                                         I* out) {
    for (int n = 0; n < N; ++n) out[n] = start<Fmt>(n32[n]);
    for (int v = 0; v < 8; ++v)
      for (int n = 0; n < N; ++n) out[n] = _mm512_dpbusd_epi32(out[n], w.v[v], broadcast4(x + 32 * n + 4 * v));
  }
  template <class Fmt, int N>
  static inline CAPAX_ALWAYS_INLINE void dot16(const Block& w, const int8_t* x, const int32_t* n16,
                                                         I* lo, I* hi) {
    for (int n = 0; n < N; ++n) {
      lo[n] = start<Fmt>(n16[2 * n]);
      hi[n] = start<Fmt>(n16[2 * n + 1]);
    }
    for (int v = 0; v < 4; ++v) {
      for (int n = 0; n < N; ++n) {
        lo[n] = _mm512_dpbusd_epi32(lo[n], w.v[v], broadcast4(x + 32 * n + 4 * v));
        hi[n] = _mm512_dpbusd_epi32(hi[n], w.v[v + 4], broadcast4(x + 32 * n + 16 + 4 * v));
      }
    }
  }
  static inline I low4(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_and_si512(wide, _mm512_set1_epi32(15));
  }
  static inline I high4(const uint8_t* p) {
    return _mm512_srli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 4);
  }
};

}  // namespace
