// Product quantisation, written once for every instruction set.
#pragma once

#include "attention/attention_impl.h"
#include "isa/isa.h"
#include "pq/pq.h"

namespace {

// ---- packed codes -----------------------------------------------------------------------------

template <int Width>
static inline const uint8_t* unpack_plane(const uint8_t* packed, int32_t n_bits, int* done, uint16_t* codes) {
  if (!(n_bits & Width)) return packed;
  constexpr int n = 8 * Width;
  for (int part = 0; part < 8 / Width; ++part)
    for (int i = 0; i < n; ++i)
      codes[part * n + i] = static_cast<uint16_t>(codes[part * n + i] | ((packed[i] >> (Width * part)) & ((1 << Width) - 1)) << *done);
  *done += Width;
  return packed + n;
}

static inline void unpack_codes(const uint8_t* packed, int32_t n_bits, uint16_t* codes) {
  memset(codes, 0, capax::kPQTokens * sizeof(uint16_t));
  int done = 0;
  packed = unpack_plane<8>(packed, n_bits, &done, codes);
  packed = unpack_plane<4>(packed, n_bits, &done, codes);
  packed = unpack_plane<2>(packed, n_bits, &done, codes);
  unpack_plane<1>(packed, n_bits, &done, codes);
}

static inline void pack_codes(const int32_t* codes, int32_t n_bits, uint8_t* packed) {
  for (int width = 8, done = 0; width >= 1; width /= 2) {
    if (!(n_bits & width)) continue;
    const int n = 8 * width;
    for (int i = 0; i < n; ++i) packed[i] = 0;
    for (int t = 0; t < capax::kPQTokens; ++t)
      packed[t % n] = static_cast<uint8_t>(packed[t % n] | ((codes[t] >> done) & ((1 << width) - 1)) << (width * (t / n)));
    packed += n;
    done += width;
  }
}

template <class Isa>
static inline void widen(const uint16_t* x, int64_t n, float* out) {
  const int64_t n_whole = n / 16 * 16;
  for (int64_t i = 0; i < n_whole; i += 16) Isa::store(out + i, Isa::load_bf16(x + i));
  for (int64_t i = n_whole; i < n_whole + n % 16; ++i) out[i] = bf16_to_f32(x[i]);
}

// ---- nearest centroid ---------------------------------------------------------------------------

// NV vectors of 16 points against all centroids. Per centroid and vector: 2 Dim arithmetic operations,
// a minimum, a comparison and a selection. Dim 0: `dim` is only known at run time.
template <class Isa, int Dim, int NV>
static inline void nearest_tile(const float* x, int64_t ldx, const float* centroids, int64_t n_centroids, int64_t dim,
                                int32_t* index, float* distance) {
  using F = typename Isa::F;
  const int64_t n_dims = Dim ? Dim : dim;
  F best[NV], at[NV], point[NV][Dim ? Dim : 1];
  for (int i = 0; i < NV; ++i) {
    best[i] = Isa::set1(__builtin_inff());
    at[i] = Isa::zero();
    if constexpr (Dim != 0)
      for (int d = 0; d < Dim; ++d) point[i][d] = Isa::load(x + d * ldx + 16 * i);
  }
  F number = Isa::zero();
  const F one = Isa::set1(1.0f);
  for (int64_t c = 0; c < n_centroids; ++c, centroids += n_dims) {
    F sum[NV];
    for (int64_t d = 0; d < n_dims; ++d) {
      const F centre = Isa::set1(centroids[d]);
      for (int i = 0; i < NV; ++i) {
        F away;
        if constexpr (Dim != 0) away = Isa::sub(point[i][d], centre);
        else away = Isa::sub(Isa::load(x + d * ldx + 16 * i), centre);
        sum[i] = d ? Isa::fma(away, away, sum[i]) : Isa::mul(away, away);
      }
    }
    for (int i = 0; i < NV; ++i) {
      at[i] = Isa::lt_select(sum[i], best[i], number, at[i]);
      best[i] = Isa::lt_select(sum[i], best[i], sum[i], best[i]);
    }
    number = Isa::add(number, one);
  }
  for (int i = 0; i < NV; ++i) {
    Isa::istore(index + 16 * i, Isa::to_i32(at[i]));
    if (distance) Isa::store(distance + 16 * i, best[i]);
  }
}

template <class Isa, int Dim>
static void nearest_points(const float* x, int64_t ldx, int64_t n, const float* centroids, int64_t n_centroids,
                           int64_t dim, int32_t* index, float* distance) {
  int64_t i = 0;
  if constexpr (tile_vectors<Isa>() == 4)
    for (; i + 64 <= n; i += 64)
      nearest_tile<Isa, Dim, 4>(x + i, ldx, centroids, n_centroids, dim, index + i, distance ? distance + i : nullptr);
  for (; i < n; i += 16)
    nearest_tile<Isa, Dim, 1>(x + i, ldx, centroids, n_centroids, dim, index + i, distance ? distance + i : nullptr);
}

template <class Isa>
static void nearest(const float* x, int64_t ldx, int64_t n, const float* centroids, int64_t n_centroids, int64_t dim,
                    int32_t* index, float* distance) {
  switch (dim) {
    case 1: return nearest_points<Isa, 1>(x, ldx, n, centroids, n_centroids, dim, index, distance);
    case 2: return nearest_points<Isa, 2>(x, ldx, n, centroids, n_centroids, dim, index, distance);
    case 4: return nearest_points<Isa, 4>(x, ldx, n, centroids, n_centroids, dim, index, distance);
    default: return nearest_points<Isa, 0>(x, ldx, n, centroids, n_centroids, dim, index, distance);
  }
}

template <class Isa>
static void encode_page(const capax::PQTable& table, const float* x, uint8_t* codes, float* scratch) {
  using namespace capax;
  const int64_t dim = pq_dim(table), n_centroids = pq_n_centroids(table);
  float poison[kPQTokens] = {};  // 0, or NaN for a vector that is not finite
  for (int64_t d = 0; d < dim; ++d)
    for (int t = 0; t < kPQTokens; t += 16)
      Isa::store(poison + t, Isa::fma(Isa::load(x + d * kPQTokens + t), Isa::zero(), Isa::load(poison + t)));
  int32_t index[kPQTokens];
  const int64_t n = n_centroids * table.sub_dim;
  for (int64_t m = 0; m < table.n_subspaces; ++m) {
    widen<Isa>(table.centroids + m * n, n, scratch);
    nearest<Isa>(x + m * table.sub_dim * kPQTokens, kPQTokens, kPQTokens, scratch, n_centroids, table.sub_dim, index, nullptr);
    if (m == 0)
      for (int t = 0; t < kPQTokens; ++t)
        if (poison[t] != 0.0f) index[t] = static_cast<int32_t>(n_centroids - 1);
    pack_codes(index, table.n_bits, codes + m * pq_row_nbytes(table.n_bits));
  }
}

// out[r * ldo + d] += the sum of the lanes of sum[r * ND + d].
template <class Isa, int NR, int ND>
static inline void add_sums(const typename Isa::F* sum, float* out, int64_t ldo) {
  for (int r = 0; r < NR; ++r)
    for (int d = 0; d < ND; ++d) out[r * ldo + d] += Isa::hsum(sum[r * ND + d]);
}

// ---- codes to numbers ---------------------------------------------------------------------------

template <class Isa>
struct PQDecode {
  static inline void columns(const capax::PQTable& table, const uint8_t* packed, float* out) {
    using namespace capax;
    const int64_t n_centroids = pq_n_centroids(table), n = table.sub_dim;
    uint16_t codes[kPQTokens], halves[kPQTokens];
    for (int64_t m = 0; m < table.n_subspaces; ++m) {
      unpack_codes(packed + m * pq_row_nbytes(table.n_bits), table.n_bits, codes);
      const uint16_t* centroids = table.centroids + m * n_centroids * n;
      for (int64_t i = 0; i < n; ++i, out += kPQTokens) {
        for (int t = 0; t < kPQTokens; ++t) halves[t] = centroids[codes[t] * n + i];
        widen<Isa>(halves, kPQTokens, out);
      }
    }
  }

  // The scores of few rows without an intermediate page, where the instruction set has it.
  static inline bool score(const capax::PQTable&, capax::PQSum, const uint8_t*, const float* const*, int64_t, float*,
                           int64_t) {
    return false;
  }

  static inline bool add_values(const capax::PQTable&, const uint8_t* const*, int64_t, const float*, int64_t, int64_t,
                                float*, int64_t) {
    return false;
  }
};

}  // namespace

#if defined(__AVX512VBMI__)
#include "pq/pq_avx512.h"
#endif

namespace {

template <class Isa>
static void pq_decode_columns(const capax::PQTable& table, const uint8_t* packed, float* out) {
  PQDecode<Isa>::columns(table, packed, out);
}

template <class Isa>
static void pq_decode_rows(const capax::PQTable& table, const uint8_t* packed, int64_t stride, float* out) {
  using namespace capax;
  const int64_t n_centroids = pq_n_centroids(table), n = table.sub_dim;
  uint16_t codes[kPQTokens];
  for (int64_t m = 0; m < table.n_subspaces; ++m) {
    unpack_codes(packed + m * pq_row_nbytes(table.n_bits), table.n_bits, codes);
    const uint16_t* centroids = table.centroids + m * n_centroids * n;
    for (int t = 0; t < kPQTokens; ++t)
      for (int64_t i = 0; i < n; ++i) out[t * stride + m * n + i] = bf16_to_f32(centroids[codes[t] * n + i]);
  }
  for (int64_t t = 0; t < kPQTokens; ++t)
    for (int64_t d = pq_dim(table); d < stride; ++d) out[t * stride + d] = 0.0f;
}

// ---- scores -------------------------------------------------------------------------------------

template <class Isa>
static void pq_prepare(const capax::PQTable& table, const float* q, float* out) {
  using F = typename Isa::F;
  const int64_t n_centroids = capax::pq_n_centroids(table), n = table.sub_dim;
  float wide[16 * capax::kMaxSubDim], column[16] = {};
  for (int64_t m = 0; m < table.n_subspaces; ++m)
    for (int64_t c = 0; c < n_centroids; c += 16) {
      const int n_lanes = static_cast<int>(least(n_centroids - c, 16));
      widen<Isa>(table.centroids + (m * n_centroids + c) * n, n_lanes * n, wide);
      F sum = Isa::zero();
      for (int64_t i = 0; i < n; ++i) {
        for (int j = 0; j < n_lanes; ++j) column[j] = wide[j * n + i];
        const F x = Isa::set1(q[m * n + i]), centre = Isa::load(column);
        sum = i ? Isa::fma(x, centre, sum) : Isa::mul(x, centre);
      }
      Isa::store_n(out + m * n_centroids + c, sum, n_lanes);
    }
}

// s[t] = sum over the sub-spaces, in order, of the table's entry for the token's code.
template <class Isa>
static inline void score_tables(const capax::PQTable& table, const uint8_t* packed, const float* const* tables,
                                int64_t n_rows, float* s, int64_t lds) {
  using namespace capax;
  const int64_t n_centroids = pq_n_centroids(table);
  uint16_t codes[kPQTokens];
  for (int64_t m = 0; m < table.n_subspaces; ++m) {
    unpack_codes(packed + m * pq_row_nbytes(table.n_bits), table.n_bits, codes);
    for (int64_t r = 0; r < n_rows; ++r) {
      const float* entries = tables[r] + m * n_centroids;
      float* to = s + r * lds;
      if (m == 0)
        for (int t = 0; t < kPQTokens; ++t) to[t] = entries[codes[t]];
      else
        for (int t = 0; t < kPQTokens; ++t) to[t] += entries[codes[t]];
    }
  }
}

// As score_tile, with the products of a sub-space added first. Per sub-space: one addition more.
template <class Isa, int NR, int NV>
static inline void score_subspaces_tile(const float* const* q, const float* k, int64_t n_subspaces, int64_t sub_dim,
                                        float* s, int64_t lds) {
  using F = typename Isa::F;
  F acc[NR][NV];
  for (int64_t m = 0; m < n_subspaces; ++m) {
    F part[NR][NV];
    for (int64_t i = 0; i < sub_dim; ++i, k += capax::kPQTokens) {
      F key[NV];
      for (int j = 0; j < NV; ++j) key[j] = Isa::load(k + 16 * j);
      for (int r = 0; r < NR; ++r) {
        const F x = Isa::set1(q[r][m * sub_dim + i]);
        for (int j = 0; j < NV; ++j) part[r][j] = i ? Isa::fma(x, key[j], part[r][j]) : Isa::mul(x, key[j]);
      }
    }
    for (int r = 0; r < NR; ++r)
      for (int j = 0; j < NV; ++j) acc[r][j] = m ? Isa::add(acc[r][j], part[r][j]) : part[r][j];
  }
  for (int r = 0; r < NR; ++r)
    for (int j = 0; j < NV; ++j) Isa::store(s + r * lds + 16 * j, acc[r][j]);
}

template <class Isa, int NR>
static void score_subspaces(const float* const* q, const float* k, int64_t n_subspaces, int64_t sub_dim, float* s,
                            int64_t lds) {
  constexpr int NV = tile_vectors<Isa>() == 4 ? 2 : 1;  // two sets of accumulators
  for (int i = 0; i < capax::kPQTokens; i += 16 * NV)
    score_subspaces_tile<Isa, NR, NV>(q, k + i, n_subspaces, sub_dim, s + i, lds);
}

#define CAPAX_PQ_ROWS(n, call)                     \
  switch (n) {                                     \
    case 1: { constexpr int NR = 1; call; break; } \
    case 2: { constexpr int NR = 2; call; break; } \
    case 3: { constexpr int NR = 3; call; break; } \
    case 4: { constexpr int NR = 4; call; break; } \
    case 5: { constexpr int NR = 5; call; break; } \
    default: { constexpr int NR = 6; call; break; } \
  }

// An even split of n rows into register tiles.
static inline int64_t rows_per_tile(int64_t n) {
  const int64_t n_tiles = (n + kTileRows - 1) / kTileRows;
  return (n + n_tiles - 1) / n_tiles;
}

template <class Isa>
static void pq_score(const capax::PQTable& table, capax::PQSum sum, const uint8_t* packed, const float* const* q,
                     const float* const* tables, int64_t n_rows, float* s, int64_t lds, float* scratch) {
  using namespace capax;
  if (tables) return score_tables<Isa>(table, packed, tables, n_rows, s, lds);
  if (PQDecode<Isa>::score(table, sum, packed, q, n_rows, s, lds)) return;
  PQDecode<Isa>::columns(table, packed, scratch);
  const int64_t dim = pq_dim(table), tile = rows_per_tile(n_rows);
  for (int64_t row = 0; row < n_rows; row += tile) {
    const int64_t n = least(tile, n_rows - row);
    if (sum == PQSum::by_subspace) {
      CAPAX_PQ_ROWS(n, (score_subspaces<Isa, NR>(q + row, scratch, table.n_subspaces, table.sub_dim, s + row * lds, lds)))
    } else {
      CAPAX_PQ_ROWS(n, (score_page<Isa, F32Cache<Isa>, NR>(q + row, scratch, dim, s + row * lds, lds, nullptr)))
    }
  }
}

// ---- values -------------------------------------------------------------------------------------

// NR rows and ND coordinates: columns: [n_pages][page_floats], coordinate d of a page at d * 64.
// Per 16 tokens: NR + ND loads, NR * ND fused multiply-adds.
template <class Isa, int NR, int ND>
static inline void add_columns(const float* columns, int64_t page_floats, int64_t n_pages, const float* p, int64_t ldp,
                               float* out, int64_t ldo) {
  using F = typename Isa::F;
  F sum[NR * ND];
  for (int i = 0; i < NR * ND; ++i) sum[i] = Isa::zero();
  for (int64_t page = 0; page < n_pages; ++page, columns += page_floats, p += capax::kPQTokens)
    for (int t = 0; t < capax::kPQTokens; t += 16) {
      F weight[NR];
      for (int r = 0; r < NR; ++r) weight[r] = Isa::load(p + r * ldp + t);
      for (int d = 0; d < ND; ++d) {
        const F value = Isa::load(columns + d * capax::kPQTokens + t);
        for (int r = 0; r < NR; ++r) sum[r * ND + d] = Isa::fma(weight[r], value, sum[r * ND + d]);
      }
    }
  add_sums<Isa, NR, ND>(sum, out, ldo);
}

template <class Isa, int NR>
static void add_row_columns(const float* columns, int64_t dim, int64_t page_floats, int64_t n_pages, const float* p,
                            int64_t ldp, float* out, int64_t ldo) {
  constexpr int ND = tile_vectors<Isa>() == 4 ? 4 : 2;
  int64_t d = 0;
  for (; d + ND <= dim; d += ND)
    add_columns<Isa, NR, ND>(columns + d * capax::kPQTokens, page_floats, n_pages, p, ldp, out + d, ldo);
  for (; d < dim; ++d) add_columns<Isa, NR, 1>(columns + d * capax::kPQTokens, page_floats, n_pages, p, ldp, out + d, ldo);
}

template <class Isa>
static void pq_add_values(const capax::PQTable& table, const uint8_t* const* packed, int64_t n_pages, const float* p,
                          int64_t ldp, int64_t n_rows, float* out, int64_t ldo, float* scratch) {
  using namespace capax;
  if (PQDecode<Isa>::add_values(table, packed, n_pages, p, ldp, n_rows, out, ldo)) return;
  const int64_t dim = pq_dim(table), page_floats = pq_page_floats(dim);
  for (int64_t page = 0; page < n_pages; ++page) PQDecode<Isa>::columns(table, packed[page], scratch + page * page_floats);
  int64_t row = 0;
  if constexpr (tile_vectors<Isa>() == 4)
    for (; row + 4 <= n_rows; row += 4)
      add_row_columns<Isa, 4>(scratch, dim, page_floats, n_pages, p + row * ldp, ldp, out + row * ldo, ldo);
  for (; row < n_rows; ++row)
    add_row_columns<Isa, 1>(scratch, dim, page_floats, n_pages, p + row * ldp, ldp, out + row * ldo, ldo);
}

#undef CAPAX_PQ_ROWS

template <class Isa>
static void pq_to_float16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += 16) Isa::store_f16(out + i, Isa::load(x + i));
}

template <class Isa>
static void pq_from_float16(const uint16_t* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) Isa::store(out + i, Isa::load_f16(x + i));
}

template <class Isa>
constexpr capax::PQKernels pq_kernels() {
  return {nearest<Isa>,    encode_page<Isa>, pq_decode_columns<Isa>, pq_decode_rows<Isa>,
          pq_prepare<Isa>, pq_score<Isa>,    pq_add_values<Isa>,      pq_to_float16<Isa>,  pq_from_float16<Isa>};
}

}  // namespace
