// Product quantisation on AVX-512 with VBMI: the codebook itself is the look-up table, in registers.
//
// A bfloat16 centroid coordinate is two bytes. 256 low bytes are four registers, and so are 256 high
// bytes; vpermi2b looks up 64 bytes among 128, so 64 codes take two of them and a blend by the code's
// top bit for each of the two planes. Per coordinate and page of 64 tokens: 8 loads, 4 look-ups,
// 2 blends, 2 interleavings, and 4 shifts or masks that make float32 of them. A conversion from float16
// instead, with values turned over into rows, took 3.4 + 6.1 ns per token and KV head of 64 for scores
// and values of 3 rows where this takes 2.4 + 2.7 (2026-11-23, EPYC Turin, one core, busy machine).
#pragma once

#include "isa/avx512.h"
#include "pq/pq.h"

namespace {

// Codes of at most 8 bits, in the order of the tokens: planes of `Width` bits as pq.h draws them.
static inline __m512i plane_of_codes(const uint8_t*& packed, int width) {
  __m512i all, shift;
  switch (width) {
    case 4:
      all = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed)));
      shift = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
      break;
    case 2:
      all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
      shift = _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6);
      break;
    default:
      all = _mm512_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed)));
      shift = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  }
  packed += 8 * width;
  return _mm512_and_si512(_mm512_srlv_epi64(all, shift), _mm512_set1_epi8(static_cast<char>((1 << width) - 1)));
}

static inline __m512i unpack_64(const uint8_t* packed, int32_t n_bits) {
  if (n_bits == 8) return _mm512_loadu_si512(packed);
  __m512i codes = _mm512_setzero_si512();
  for (int width = 4, done = 0; width >= 1; width /= 2) {
    if (!(n_bits & width)) continue;
    codes = _mm512_or_si512(codes, _mm512_slli_epi64(plane_of_codes(packed, width), static_cast<unsigned>(done)));
    done += width;
  }
  return codes;
}

// Token t of a page goes to this byte, so that four float32 vectors of tokens in order come out:
// interleaving low and high bytes takes 8 codes from each quarter, and a shift or a mask every other.
alignas(64) static const uint8_t kCodeOrder[64] = {
    0,  16, 1,  17, 2,  18, 3,  19, 32, 48, 33, 49, 34, 50, 35, 51, 4,  20, 5,  21, 6,  22,
    7,  23, 36, 52, 37, 53, 38, 54, 39, 55, 8,  24, 9,  25, 10, 26, 11, 27, 40, 56, 41, 57,
    42, 58, 43, 59, 12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63};

static inline __m512i load_codes(const uint8_t* packed, int32_t n_bits) {
  return _mm512_permutexvar_epi8(_mm512_load_si512(kCodeOrder), unpack_64(packed, n_bits));
}

// NT: registers of a plane that are in use, 1 for up to 6 bits, 2 for 7, 4 for 8.
template <int NT>
static inline __m512i look_up(__m512i codes, __mmask64 upper, const uint8_t* plane) {
  const __m512i a = _mm512_loadu_si512(plane);
  if constexpr (NT == 1) return _mm512_permutexvar_epi8(codes, a);
  const __m512i low = _mm512_permutex2var_epi8(a, codes, _mm512_loadu_si512(plane + 64));
  if constexpr (NT <= 2) return low;
  const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(plane + 128), codes, _mm512_loadu_si512(plane + 192));
  return _mm512_mask_blend_epi8(upper, low, high);
}

// One coordinate of 64 tokens.
template <int NT>
static inline void look_up_floats(__m512i codes, __mmask64 upper, const uint8_t* planes, __m512* out) {
  const __m512i low = look_up<NT>(codes, upper, planes), high = look_up<NT>(codes, upper, planes + 256);
  const __m512i front = _mm512_unpacklo_epi8(low, high), back = _mm512_unpackhi_epi8(low, high);
  const __m512i top = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(front, 16));
  out[1] = _mm512_castsi512_ps(_mm512_and_si512(front, top));
  out[2] = _mm512_castsi512_ps(_mm512_slli_epi32(back, 16));
  out[3] = _mm512_castsi512_ps(_mm512_and_si512(back, top));
}

template <int NT, class Visit>
static inline void for_each_coordinate(const capax::PQTable& table, const uint8_t* packed, Visit visit) {
  const uint8_t* planes = table.planes;
  for (int64_t m = 0; m < table.n_subspaces; ++m) {
    const __m512i codes = load_codes(packed + m * capax::pq_row_nbytes(table.n_bits), table.n_bits);
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    for (int64_t i = 0; i < table.sub_dim; ++i, planes += 512) {
      __m512 column[4];
      look_up_floats<NT>(codes, upper, planes, column);
      visit(m * table.sub_dim + i, column);
    }
  }
}

// Scores of NR rows, keys never leaving the registers: 4 NR accumulators.
template <int NT, int NR>
static void score_in_registers(const capax::PQTable& table, const uint8_t* packed, const float* const* q, float* s,
                               int64_t lds) {
  __m512 acc[NR][4];
  const float* row[NR];
  for (int r = 0; r < NR; ++r) {
    row[r] = q[r];
    for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_setzero_ps();
  }
  for_each_coordinate<NT>(table, packed, [&](int64_t d, const __m512* key) {
    for (int r = 0; r < NR; ++r) {
      const __m512 x = _mm512_set1_ps(row[r][d]);
      for (int j = 0; j < 4; ++j) acc[r][j] = _mm512_fmadd_ps(x, key[j], acc[r][j]);
    }
  });
  for (int r = 0; r < NR; ++r)
    for (int j = 0; j < 4; ++j) _mm512_storeu_ps(s + r * lds + 16 * j, acc[r][j]);
}

// Element 4 L + g of the result is hsum of v[4 g + L]: the tree of hsum for 16 vectors at once, in 30
// shuffles and 15 additions.
static inline __m512 hsum_of_each(const __m512* v) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44), _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  for (int i = 0; i < 4; ++i)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88), _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44), _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
  return _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
}

template <int NR>
static inline void add_sums_of_4(const __m512* sum, float* out, int64_t ldo) {  // sum[r * 4 + d]
  __m512 v[16];
  for (int r = 0; r < 4; ++r)
    for (int d = 0; d < 4; ++d) v[4 * d + r] = r < NR ? sum[r * 4 + d] : _mm512_setzero_ps();
  const __m512 sums = hsum_of_each(v);  // quarter r: row r, its 4 coordinates
  const __m128 rows[4] = {_mm512_castps512_ps128(sums), _mm512_extractf32x4_ps(sums, 1), _mm512_extractf32x4_ps(sums, 2),
                          _mm512_extractf32x4_ps(sums, 3)};
  for (int r = 0; r < NR; ++r) _mm_storeu_ps(out + r * ldo, _mm_add_ps(_mm_loadu_ps(out + r * ldo), rows[r]));
}
template <>
inline void add_sums<Avx512, 4, 4>(const __m512* sum, float* out, int64_t ldo) {
  add_sums_of_4<4>(sum, out, ldo);
}

// Weighted values of NR rows: ND coordinates from d0 on over all pages, NR ND accumulators.
// SD: 2 or 4 if so many coordinates in a row are of one sub-space, else 1.
template <int NT, int NR, int ND, int SD>
static inline void add_coordinates(const capax::PQTable& table, const uint8_t* const* packed, int64_t n_pages, int64_t d0,
                                   const float* p, int64_t ldp, float* out, int64_t ldo) {
  __m512 sum[NR * ND];
  for (int i = 0; i < NR * ND; ++i) sum[i] = _mm512_setzero_ps();
  int64_t offset[ND];
  for (int d = 0; d < ND; ++d) offset[d] = (d0 + d) / table.sub_dim * capax::pq_row_nbytes(table.n_bits);
  const uint8_t* planes = table.planes + d0 * 512;
  for (int64_t page = 0; page < n_pages; ++page, p += capax::kPQTokens) {
    __m512 value[ND][4];
    __m512i codes = _mm512_setzero_si512();
    __mmask64 upper = 0;
    for (int d = 0; d < ND; ++d) {
      if (d % SD == 0) {
        codes = load_codes(packed[page] + offset[d], table.n_bits);
        upper = _mm512_movepi8_mask(codes);
      }
      look_up_floats<NT>(codes, upper, planes + 512 * d, value[d]);
    }
    for (int j = 0; j < 4; ++j)
      for (int r = 0; r < NR; ++r) {
        const __m512 weight = _mm512_loadu_ps(p + r * ldp + 16 * j);
        for (int d = 0; d < ND; ++d) sum[r * ND + d] = _mm512_fmadd_ps(weight, value[d][j], sum[r * ND + d]);
      }
  }
  if constexpr (ND == 4) add_sums_of_4<NR>(sum, out, ldo);
  else add_sums<Avx512, NR, ND>(sum, out, ldo);
}

template <int NT, int NR>
static void add_in_registers(const capax::PQTable& table, const uint8_t* const* packed, int64_t n_pages, const float* p,
                             int64_t ldp, float* out, int64_t ldo) {
  const int64_t dim = capax::pq_dim(table);
  int64_t d = 0;
  for (; d + 4 <= dim; d += 4)
    if (table.sub_dim % 4 == 0)
      add_coordinates<NT, NR, 4, 4>(table, packed, n_pages, d, p, ldp, out + d, ldo);
    else if (table.sub_dim == 2)
      add_coordinates<NT, NR, 4, 2>(table, packed, n_pages, d, p, ldp, out + d, ldo);
    else
      add_coordinates<NT, NR, 4, 1>(table, packed, n_pages, d, p, ldp, out + d, ldo);
  for (; d < dim; ++d) add_coordinates<NT, NR, 1, 1>(table, packed, n_pages, d, p, ldp, out + d, ldo);
}

#define CAPAX_PQ_REGISTERS(n_bits, call)                  \
  if ((n_bits) <= 6) { constexpr int NT = 1; call; }      \
  else if ((n_bits) == 7) { constexpr int NT = 2; call; } \
  else { constexpr int NT = 4; call; }

struct PQGeneric : Avx512 {};  // chooses the code for all instruction sets

template <>
struct PQDecode<Avx512> {
  static constexpr int64_t kRows = 4;  // at most so many rows work without an intermediate page

  static inline void columns(const capax::PQTable& table, const uint8_t* packed, float* out) {
    if (table.n_bits > 8) return PQDecode<PQGeneric>::columns(table, packed, out);
    CAPAX_PQ_REGISTERS(table.n_bits, (for_each_coordinate<NT>(table, packed, [&](int64_t d, const __m512* column) {
      for (int j = 0; j < 4; ++j) _mm512_storeu_ps(out + d * 64 + 16 * j, column[j]);
    })))
  }

  static inline bool score(const capax::PQTable& table, capax::PQSum sum, const uint8_t* packed, const float* const* q,
                           int64_t n_rows, float* s, int64_t lds) {
    if (table.n_bits > 8 || n_rows > kRows || sum != capax::PQSum::along_vector) return false;
    CAPAX_PQ_REGISTERS(table.n_bits, (score_rows<NT>(table, packed, q, n_rows, s, lds)))
    return true;
  }

  static inline bool add_values(const capax::PQTable& table, const uint8_t* const* packed, int64_t n_pages, const float* p,
                                int64_t ldp, int64_t n_rows, float* out, int64_t ldo) {
    if (table.n_bits > 8 || n_rows > kRows) return false;
    CAPAX_PQ_REGISTERS(table.n_bits, (add_rows<NT>(table, packed, n_pages, p, ldp, n_rows, out, ldo)))
    return true;
  }

 private:
  template <int NT>
  static inline void score_rows(const capax::PQTable& table, const uint8_t* packed, const float* const* q,
                                int64_t n_rows, float* s, int64_t lds) {
    switch (n_rows) {
      case 1: return score_in_registers<NT, 1>(table, packed, q, s, lds);
      case 2: return score_in_registers<NT, 2>(table, packed, q, s, lds);
      case 3: return score_in_registers<NT, 3>(table, packed, q, s, lds);
      default: return score_in_registers<NT, 4>(table, packed, q, s, lds);
    }
  }

  template <int NT>
  static inline void add_rows(const capax::PQTable& table, const uint8_t* const* packed, int64_t n_pages, const float* p,
                              int64_t ldp, int64_t n_rows, float* out, int64_t ldo) {
    switch (n_rows) {
      case 1: return add_in_registers<NT, 1>(table, packed, n_pages, p, ldp, out, ldo);
      case 2: return add_in_registers<NT, 2>(table, packed, n_pages, p, ldp, out, ldo);
      case 3: return add_in_registers<NT, 3>(table, packed, n_pages, p, ldp, out, ldo);
      default: return add_in_registers<NT, 4>(table, packed, n_pages, p, ldp, out, ldo);
    }
  }
};

#undef CAPAX_PQ_REGISTERS

}  // namespace
