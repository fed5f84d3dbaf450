// Block dot products on AVX2, where sixteen registers cannot hold a block: quants are unpacked
// into 512 bytes of stack and a register holds 8 rows. vpmaddubsw adds pairs in int16, so each
// width of quant states why it cannot saturate. Per vector of 64 quants and token: two products,
// two sums and half of two loads; a broadcast besides. Measured on one core of an AMD Zen 3
// (2026-11-24, 256 tokens, 768 inputs, beside other work): Q4_1, Q4_0, Q4_K 99 GMAC/s, Q5_0 89,
// Q3_K 74, Q6_K and Q2_K 67, Q8_0 55, which is 1.2 to 1.5 times one token after the other and a
// block unpacked for four of them. One token: 30 (Q8_0, Q6_K) to 50 (Q4_1).
#pragma once

#include "isa/avx2.h"
#include "matmul/dot.h"

namespace {

template <>
struct Dot<Avx2> {
  using I = Avx2::I;
  static constexpr int max_tokens = 16, step = 2;
  static constexpr bool sums_in_registers = false;  // unpacking is shared by 16 tokens instead
  struct Block {
    alignas(32) uint8_t v[8][64];
    alignas(32) uint8_t magnitude[8][64];  // 8 bits only: |v|
  };

  template <class Fmt>
  static inline void unpack(const uint8_t* planes, Block& w) {
    for (int half = 0; half < 64; half += 32) {
      const uint8_t* p = planes + half;
      const auto at = [&](int k) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 64 * k)); };
      __m256i q[8];
      if constexpr (Fmt::bits == 8) {  // kept signed: see `part`
        for (int v = 0; v < 8; ++v) q[v] = _mm256_xor_si256(at(v), _mm256_set1_epi8(-128));
      }
      if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
        const __m256i mask = _mm256_set1_epi8(15);
        for (int k = 0; k < 4; ++k) {
          const __m256i both = at(k);
          q[k] = _mm256_and_si256(both, mask);
          q[k + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        }
      }
      if constexpr (Fmt::bits == 6) {
        const __m256i mask = _mm256_set1_epi8(0x30);
        for (int j = 0; j < 2; ++j) {
          const __m256i plane = at(4 + j);
          q[4 * j] = merge(q[4 * j], _mm256_slli_epi16(plane, 4), mask);
          q[4 * j + 1] = merge(q[4 * j + 1], _mm256_slli_epi16(plane, 2), mask);
          q[4 * j + 2] = merge(q[4 * j + 2], plane, mask);
          q[4 * j + 3] = merge(q[4 * j + 3], _mm256_srli_epi16(plane, 2), mask);
        }
      }
      if constexpr (Fmt::bits == 2 || Fmt::bits == 3) {
        const __m256i mask = _mm256_set1_epi8(3);
        for (int j = 0; j < 2; ++j)
          for (int i = 0; i < 4; ++i) q[4 * j + i] = _mm256_and_si256(_mm256_srli_epi16(at(j), 2 * i), mask);
      }
      if constexpr (Fmt::bits == 5) {
        const __m256i mask = _mm256_set1_epi8(0x10);
        const __m256i plane = at(4);
        for (int v = 0; v < 4; ++v) q[v] = merge(q[v], _mm256_slli_epi16(plane, 4 - v), mask);
        for (int v = 4; v < 8; ++v) q[v] = merge(q[v], _mm256_srli_epi16(plane, v - 4), mask);
      }
      if constexpr (Fmt::bits == 3) {
        const __m256i mask = _mm256_set1_epi8(4);
        const __m256i plane = at(2);
        for (int v = 0; v < 2; ++v) q[v] = merge(q[v], _mm256_slli_epi16(plane, 2 - v), mask);
        for (int v = 2; v < 8; ++v) q[v] = merge(q[v], _mm256_srli_epi16(plane, v - 2), mask);
      }
      for (int v = 0; v < 8; ++v) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(w.v[v] + half), q[v]);
        if constexpr (Fmt::bits == 8)
          _mm256_store_si256(reinterpret_cast<__m256i*>(w.magnitude[v] + half), _mm256_abs_epi8(q[v]));
      }
    }
  }
  static inline __m256i merge(__m256i low, __m256i shifted, __m256i mask) {
    return _mm256_or_si256(low, _mm256_and_si256(shifted, mask));
  }
  static inline __m256i broadcast4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }

  static inline __m256i load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static inline __m256i widen_pairs(__m256i sum, __m256i pairs) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  // Adds now: left to itself, the compiler collects products and runs out of registers.
  static inline void pin(__m256i& lo, __m256i& hi) { asm("" : "+x"(lo), "+x"(hi)); }

  // Sums over vectors [V0, V1) of (w - zero) * x of N tokens side by side: each vector is loaded
  // once for all of them, each input broadcast once for both halves of the rows.
  template <class Fmt, int V0, int V1, int N>
  static inline CAPAX_ALWAYS_INLINE void sums(const Block& w, const int8_t* x, const int32_t* minus_sum, int stride,
                                              I* sum) {
    // A pair is at most 2 * 127 * (2^bits - 1): 3810 at 4 bits, 7874 at 5, 16002 at 6, so 8, 4
    // and 2 vectors add up within int16 before they are widened. At 8 bits a pair is
    // |w| * (sign(w) * x), at most 2 * 128 * 127 = 32512, and is widened alone.
    constexpr int Run = Fmt::bits <= 4 ? 8 : Fmt::bits == 5 ? 4 : Fmt::bits == 6 ? 2 : 1;
    for (int n = 0; n < N; ++n) sum[n] = Avx2::iset1(Fmt::bits == 8 ? 0 : minus_sum[stride * n] * Fmt::zero);
#pragma GCC unroll 8
    for (int v0 = V0; v0 < V1; v0 += Run) {
      __m256i lo[N], hi[N];
      for (int v = v0; v < v0 + Run && v < V1; ++v) {
        const __m256i wl = load(w.v[v]), wh = load(w.v[v] + 32);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          const __m256i xv = broadcast4(x + 32 * n + 4 * v);
          __m256i pl, ph;
          if constexpr (Fmt::bits == 8) {
            pl = _mm256_maddubs_epi16(load(w.magnitude[v]), _mm256_sign_epi8(xv, wl));
            ph = _mm256_maddubs_epi16(load(w.magnitude[v] + 32), _mm256_sign_epi8(xv, wh));
          } else {
            pl = _mm256_maddubs_epi16(wl, xv);
            ph = _mm256_maddubs_epi16(wh, xv);
          }
          lo[n] = v == v0 ? pl : _mm256_add_epi16(lo[n], pl);
          hi[n] = v == v0 ? ph : _mm256_add_epi16(hi[n], ph);
          pin(lo[n], hi[n]);
        }
      }
      for (int n = 0; n < N; ++n) {
        sum[n].lo = widen_pairs(sum[n].lo, lo[n]);
        sum[n].hi = widen_pairs(sum[n].hi, hi[n]);
      }
    }
  }
  template <class Fmt, int N>
  static inline CAPAX_ALWAYS_INLINE void dot32(const Block& w, const int8_t* x, const int32_t* n32,
                                                         I* out) {
    sums<Fmt, 0, 8, N>(w, x, n32, 1, out);
  }
  template <class Fmt, int N>
  static inline CAPAX_ALWAYS_INLINE void dot16(const Block& w, const int8_t* x, const int32_t* n16,
                                                         I* lo, I* hi) {
    sums<Fmt, 0, 4, N>(w, x, n16, 2, lo);
    sums<Fmt, 4, 8, N>(w, x, n16 + 1, 2, hi);
  }
  static inline I widen(__m128i bytes) {
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static inline I low4(const uint8_t* p) {
    return widen(_mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), _mm_set1_epi8(15)));
  }
  static inline I high4(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return widen(_mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
  }
};

}  // namespace
