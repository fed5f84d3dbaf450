// Exact products of 16-bit numbers with the bytes of an int8 cache: the integer half of its attention.
//
// Four bytes that are multiplied with four numbers of a row lie side by side, 16 lanes in 64 bytes:
//   keys   [k_dim / 4][64 keys][4 channels]      values [64 / 4 keys][v_stride][4 keys]
// Bytes are the code plus 128. A row x (a query, or weights of 64 keys) is rounded to
// scale * q, |q| <= 32639, and split in two bytes, q = 256 hi + lo: what an instruction for
// products of bytes can take. Integers are exact, so every instruction set gives the same sums.
#pragma once

#include "isa/isa.h"

namespace {

constexpr float kShortTop = 32639.0f;  // 127 * 256 + 127
constexpr int64_t kShortChunk = 64;    // numbers whose sum of products fits 31 bits

// A row of n numbers, n a multiple of 4; the memory is `short_row_floats(n)` floats.
struct ShortRow {
  float* scale;       // then, for each chunk, the sum of its q
  int32_t* sums;
  int16_t* q;
  int8_t *hi, *lo;
};
static inline int64_t short_row_floats(int64_t n) { return ((n + kShortChunk - 1) / kShortChunk + 4) / 4 * 4 + n; }
static inline ShortRow short_row_at(float* memory, int64_t n) {
  float* numbers = memory + short_row_floats(n) - n;
  auto* q = reinterpret_cast<int16_t*>(numbers);
  auto* bytes = reinterpret_cast<int8_t*>(numbers + n / 2);
  return {memory, reinterpret_cast<int32_t*>(memory + 1), q, bytes, bytes + n};
}

// Numbers i .. i + 15 of a row, or the `count` first of them if `N` is 0.
template <class Isa, int N>
static inline void split_short(typename Isa::I numbers, int64_t count, const ShortRow& row, int64_t i) {
  int32_t q[16];
  Isa::istore(q, numbers);
  const int64_t n = N ? N : count;
  for (int64_t j = 0; j < n; ++j) row.q[i + j] = static_cast<int16_t>(q[j]);
  for (int64_t j = 0; j < n; ++j) row.lo[i + j] = static_cast<int8_t>(q[j]);
  for (int64_t j = 0; j < n; ++j) row.hi[i + j] = static_cast<int8_t>((q[j] + 128) >> 8);
}

// Round x[0..valid), and zeros up to n. A row with a non-finite number gets a NaN scale.
template <class Isa>
static inline void to_short_row(const float* x, int64_t valid, int64_t n, const ShortRow& row) {
  using F = typename Isa::F;
  F top = Isa::zero(), poison = Isa::zero();
  const auto load = [&](int64_t i) {
    return valid - i >= 16 ? Isa::load(x + i) : Isa::load_n(x + i, static_cast<int>(valid - i), 0.0f);
  };
  for (int64_t i = 0; i < valid; i += 16) {
    top = Isa::max(Isa::abs(load(i)), top);
    poison = Isa::fma(load(i), Isa::zero(), poison);
  }
  const float most = Isa::hmax(top);
  *row.scale = most / kShortTop + Isa::hsum(poison);
  const F inverse = Isa::set1(most > 0.0f ? kShortTop / most : 0.0f), limit = Isa::set1(kShortTop);
  auto sum = Isa::izero();
  for (int64_t i = 0; i < n; i += 16) {
    // max(NaN, ...) is the limit; the scale then says so.
    F scaled = i < valid ? Isa::round(Isa::mul(load(i), inverse)) : Isa::zero();
    scaled = Isa::min(Isa::max(scaled, Isa::sub(Isa::zero(), limit)), limit);
    const auto q = Isa::to_i32(scaled);
    sum = Isa::iadd(sum, q);
    if (n - i >= 16)
      split_short<Isa, 16>(q, 16, row, i);
    else
      split_short<Isa, 0>(q, n - i, row, i);
    if ((i + 16) % kShortChunk == 0 || i + 16 >= n) {
      int32_t lanes[16];
      Isa::istore(lanes, sum);
      int32_t total = 0;
      for (int j = 0; j < 16; ++j) total += lanes[j];
      row.sums[i / kShortChunk] = total;
      sum = Isa::izero();
    }
  }
}

// out[r][v] = sum over i in [first, last), a multiple of 4 numbers in one chunk, of q_r[i] times the byte
// (i, lane of vector v). from: the bytes of numbers 0 .. 3, lane 0; stride: bytes to the next four numbers.
template <class Isa>
struct ShortDot {
  template <int NR, int NV, bool Ahead>
  static inline void sums(const ShortRow* rows, const uint8_t* from, int64_t stride, int64_t first, int64_t last,
                          typename Isa::I (*out)[NV], const uint8_t*) {
    for (int r = 0; r < NR; ++r) {
      for (int v = 0; v < NV; ++v) {
        int32_t sum[16] = {};
        for (int64_t i = first; i < last; i += 4) {
          const uint8_t* bytes = from + i / 4 * stride + 64 * v;
          for (int lane = 0; lane < 16; ++lane)
            for (int b = 0; b < 4; ++b) sum[lane] += rows[r].q[i + b] * bytes[4 * lane + b];
        }
        out[r][v] = Isa::iload(sum);
      }
    }
  }
};

}  // namespace

#if defined(__AVX512VNNI__)
#include "isa/avx512.h"
namespace {
template <>
struct ShortDot<Avx512> {
  static inline __m512i broadcast4(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // GCC 12 moves each accumulator of the intrinsic to another register and back.
  static inline CAPAX_ALWAYS_INLINE void add_products(__m512i& sum, __m512i bytes, __m512i four) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(four));
  }
  // Per 4 numbers: NV loads, 2 NR broadcasts, 2 NR NV products of 64 bytes each. A function of its own:
  // inlined where the count is a constant, GCC 12 unrolls the wrong loop and keeps the sums on the stack.
  template <int NR, int NV, bool Ahead>
  static __attribute__((noinline)) void sums(const ShortRow* rows, const uint8_t* from, int64_t stride, int64_t first,
                                              int64_t last, __m512i (*out)[NV], const uint8_t* ahead) {
    asm("" : "+r"(last));
    __m512i hi[NR][NV], lo[NR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) hi[r][v] = lo[r][v] = _mm512_setzero_si512();
    for (int64_t i = first; i < last; i += 4) {
      const uint8_t* p = from + i / 4 * stride;
      __m512i bytes[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        if constexpr (Ahead) __builtin_prefetch(ahead + i / 4 * stride + 64 * v);
        bytes[v] = _mm512_loadu_si512(p + 64 * v);
      }
#pragma GCC unroll 8
      for (int r = 0; r < NR; ++r) {
        const __m512i h = broadcast4(rows[r].hi + i), l = broadcast4(rows[r].lo + i);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          add_products(hi[r][v], bytes[v], h);
          add_products(lo[r][v], bytes[v], l);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < NR; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) out[r][v] = _mm512_add_epi32(_mm512_slli_epi32(hi[r][v], 8), lo[r][v]);
  }
};
}  // namespace
#elif defined(__AVX2__)
#include "isa/avx2.h"
namespace {
template <>
struct ShortDot<Avx2> {
  // Per 4 numbers and vector: 4 widening loads, 4 multiply-adds of 16-bit pairs, 4 additions.
  template <int NR, int NV, bool Ahead>
  static inline void sums(const ShortRow* rows, const uint8_t* from, int64_t stride, int64_t first, int64_t last,
                          Avx2::I (*out)[NV], const uint8_t*) {
    for (int r = 0; r < NR; ++r) {
      for (int v = 0; v < NV; ++v) {
        __m256i acc[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
        for (int64_t i = first; i < last; i += 4) {
          int64_t four;
          memcpy(&four, rows[r].q + i, 8);
          const __m256i q = _mm256_set1_epi64x(four);
          const uint8_t* p = from + i / 4 * stride + 64 * v;
          for (int k = 0; k < 4; ++k) {
            const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * k)));
            acc[k] = _mm256_add_epi32(acc[k], _mm256_madd_epi16(wide, q));
          }
        }
        // Pairs of neighbouring sums belong together; hadd leaves the middle quarters exchanged.
        out[r][v].lo = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[0], acc[1]), 0xd8);
        out[r][v].hi = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[2], acc[3]), 0xd8);
      }
    }
  }
};
}  // namespace
#endif
