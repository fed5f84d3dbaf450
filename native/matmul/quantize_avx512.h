// Sixteen blocks of activations to int8 at once on AVX-512: the reductions over a block turn into
// one transposing tree for sixteen blocks, and scales, sums and checks run with a lane per block.
#pragma once

#include "isa/avx512.h"
#include "matmul/matmul.h"

namespace {

// Lane i of the result is the greatest of the 16 unsigned lanes of v[i].
static inline __m512i max_of_each(const __m512i* v) {
  __m512i a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)  // lanes of v[2i], v[2i+1] alternate
    a[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i)  // a quarter of a register holds vectors 4i .. 4i+3
    b[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
  for (int i = 0; i < 2; ++i)  // quarters: b[2i], b[2i], b[2i+1], b[2i+1]
    c[i] = _mm512_max_epu32(_mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0x44),
                            _mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0xee));
  return _mm512_max_epu32(_mm512_shuffle_i32x4(c[0], c[1], 0x88), _mm512_shuffle_i32x4(c[0], c[1], 0xdd));
}

// Eight blocks of 32 bytes: quarter k of the result, lane j is the sum of half k % 2 of block 2j + k / 2.
static inline __m512i sums_of_halves(const int8_t* q) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i fours[4];
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(q + 64 * i));
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(fours[0], fours[1]), _mm512_unpackhi_epi32(fours[0], fours[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(fours[2], fours[3]), _mm512_unpackhi_epi32(fours[2], fours[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// As `quantize_block` for n <= 16 blocks that are `stride` floats and `entry_stride` entries apart.
static inline void quantize_blocks_avx512(const float* x, int64_t stride, int n, int64_t entry,
                                          int64_t entry_stride, const capax::Q8Rows& out) {
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  __m512i peaks[16];
  for (int i = 0; i < 16; ++i) {
    const float* block = x + (i < n ? i * stride : 0);
    const __m512i lo = _mm512_and_si512(_mm512_loadu_si512(block), sign);
    const __m512i hi = _mm512_and_si512(_mm512_loadu_si512(block + 16), sign);
    peaks[i] = _mm512_max_epu32(lo, hi);  // magnitudes order like their bits, NaN above infinity
  }
  const __m512i peak = max_of_each(peaks);
  const __m512 amax = _mm512_castsi512_ps(peak);
  const __mmask16 finite = _mm512_cmplt_epu32_mask(peak, _mm512_set1_epi32(0x7f800000));
  const __mmask16 normal = finite & _mm512_cmp_ps_mask(amax, _mm512_set1_ps(0x1p-100f), _CMP_GT_OQ);
  const __m512 scale = _mm512_maskz_div_ps(normal, _mm512_set1_ps(127.0f), amax);
  __m512 d = _mm512_maskz_div_ps(normal, amax, _mm512_set1_ps(127.0f));
  d = _mm512_mask_blend_ps(finite, _mm512_set1_ps(__builtin_nanf("")), d);

  alignas(64) float scales[16];
  alignas(64) int8_t q[512];
  _mm512_store_ps(scales, scale);
  for (int i = 0; i < 16; ++i) {
    const float* block = x + (i < n ? i * stride : 0);
    const __m512 s = _mm512_set1_ps(scales[i]);
    // A non-finite input times 0 is NaN, converts to 0x80000000 and is cut to 0.
    const __m512i lo = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(block), s));
    const __m512i hi = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(block + 16), s));
    _mm_store_si128(reinterpret_cast<__m128i*>(q + 32 * i), _mm512_cvtepi32_epi8(lo));
    _mm_store_si128(reinterpret_cast<__m128i*>(q + 32 * i + 16), _mm512_cvtepi32_epi8(hi));
  }
  const __m512i a = sums_of_halves(q), b = sums_of_halves(q + 256);
  const __m512i low_halves = _mm512_permutex2var_epi32(
      a, _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27), b);
  const __m512i high_halves = _mm512_permutex2var_epi32(
      a, _mm512_setr_epi32(4, 12, 5, 13, 6, 14, 7, 15, 20, 28, 21, 29, 22, 30, 23, 31), b);
  const __m512i sum = _mm512_add_epi32(low_halves, high_halves);
  const __m512 s = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum));
  const __m512i zero = _mm512_setzero_si512();
  const __m512i minus_low = _mm512_sub_epi32(zero, low_halves), minus_high = _mm512_sub_epi32(zero, high_halves);
  const __m512i minus_sum = _mm512_sub_epi32(zero, sum);
  if (entry_stride == 1) {
    const __m512i first = _mm512_permutex2var_epi32(
        minus_low, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), minus_high);
    const __m512i second = _mm512_permutex2var_epi32(
        minus_low, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), minus_high);
    const __mmask16 valid = Avx512::mask(n);
    _mm512_mask_storeu_ps(out.d + entry, valid, d);
    _mm512_mask_storeu_ps(out.s + entry, valid, s);
    _mm512_mask_storeu_epi32(out.n32 + entry, valid, minus_sum);
    _mm512_mask_storeu_epi32(out.n16 + 2 * entry, Avx512::mask(n < 8 ? 2 * n : 16), first);
    _mm512_mask_storeu_epi32(out.n16 + 2 * entry + 16, Avx512::mask(n < 8 ? 0 : 2 * n - 16), second);
    if (n == 16) {
      memcpy(out.q + 32 * entry, q, 512);
    } else {
      memcpy(out.q + 32 * entry, q, static_cast<size_t>(32 * n));
    }
    return;
  }
  alignas(64) float ds[16], ss[16];
  alignas(64) int32_t sums[16], lows[16], highs[16];
  _mm512_store_ps(ds, d);
  _mm512_store_ps(ss, s);
  _mm512_store_si512(sums, minus_sum);
  _mm512_store_si512(lows, minus_low);
  _mm512_store_si512(highs, minus_high);
  for (int i = 0; i < n; ++i, entry += entry_stride) {
    memcpy(out.q + 32 * entry, q + 32 * i, 32);
    out.d[entry] = ds[i], out.s[entry] = ss[i], out.n32[entry] = sums[i];
    out.n16[2 * entry] = lows[i], out.n16[2 * entry + 1] = highs[i];
  }
}

}  // namespace
