#pragma once

#include <math.h>

#include "attention/attention.h"
#include "attention/bytes.h"
#include "isa/isa.h"
#include "norms/exp.h"

namespace {

// ---- elements of the cache --------------------------------------------------------------------

template <class Isa>
struct F32Cache {
  using T = float;
  static constexpr bool scaled = false;
  static inline typename Isa::F load(const T* p) { return Isa::load(p); }
};
template <class Isa>
struct F16Cache {
  using T = uint16_t;
  static constexpr bool scaled = false;
  static inline typename Isa::F load(const T* p) { return Isa::load_f16(p); }
};
template <class Isa>
struct Bf16Cache {
  using T = uint16_t;
  static constexpr bool scaled = false;
  static inline typename Isa::F load(const T* p) { return Isa::load_bf16(p); }
};
template <class Isa>
struct I8Cache {
  using T = uint8_t;
  static constexpr bool scaled = true;
};

// ---- append -----------------------------------------------------------------------------------

// Quantise n values to int8 with one scale, scale = max|x| / 127. A row with a non-finite value gets
// a NaN scale: it must not come back as an innocent number.
// Four neighbours lie side by side, the next four `quad` bytes on: value i goes to
// out[i / 4 * quad + i % 4] if `quad` is not 0, else to out[i * 4].
static inline float quantise_i8(const float* x, int64_t n, uint8_t* out, int64_t quad) {
  float top = 0.0f, poison = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float a = fabsf(x[i]);
    top = a > top ? a : top;
    poison += x[i] * 0.0f;
  }
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    float scaled = nearbyintf(x[i] * inverse);
    scaled = scaled > 127.0f ? 127.0f : scaled >= -127.0f ? scaled : -127.0f;
    out[quad ? i / 4 * quad + i % 4 : i * 4] = static_cast<uint8_t>(static_cast<int>(scaled) + 128);
  }
  return top / 127.0f + poison;
}

template <class Isa>
static void append_kv(const capax::KVView& view, const float* k, int64_t ldk, const float* v, int64_t ldv,
                      int64_t n_tokens, int64_t position0, int32_t head_begin, int32_t head_end) {
  using namespace capax;
  const int64_t k_dim = view.layout.k_dim, v_dim = view.layout.v_dim, v_stride = kv_v_stride(view.layout);
  for (int64_t t = 0; t < n_tokens; ++t) {
    const int64_t position = position0 + t, slot = position % kPageTokens;
    for (int32_t head = head_begin; head < head_end; ++head) {
      const KVHead at = kv_head_at(view, position / kPageTokens, head);
      const float* key = k + t * ldk + head * k_dim;
      const float* value = v + t * ldv + head * v_dim;
      switch (view.layout.type) {
        case KVType::f32: {
          float* to = reinterpret_cast<float*>(at.k) + slot;
          for (int64_t d = 0; d < k_dim; ++d) to[d * kPageTokens] = key[d];
          memcpy(reinterpret_cast<float*>(at.v) + slot * v_stride, value, static_cast<size_t>(v_dim) * sizeof(float));
          break;
        }
        case KVType::f16: {
          uint16_t* to = reinterpret_cast<uint16_t*>(at.k) + slot;
          uint16_t halves[16];
          for (int64_t d = 0; d < k_dim; d += 16) {
            const int valid = k_dim - d < 16 ? static_cast<int>(k_dim - d) : 16;
            Isa::store_f16(halves, Isa::load_n(key + d, valid, 0.0f));
            for (int i = 0; i < valid; ++i) to[(d + i) * kPageTokens] = halves[i];
          }
          to = reinterpret_cast<uint16_t*>(at.v) + slot * v_stride;
          for (int64_t d = 0; d < v_dim; d += 16)
            Isa::store_f16(to + d, Isa::load_n(value + d, v_dim - d < 16 ? static_cast<int>(v_dim - d) : 16, 0.0f));
          break;
        }
        case KVType::bf16: {
          uint16_t* to = reinterpret_cast<uint16_t*>(at.k) + slot;
          for (int64_t d = 0; d < k_dim; ++d) to[d * kPageTokens] = f32_to_bf16(key[d]);
          to = reinterpret_cast<uint16_t*>(at.v) + slot * v_stride;
          for (int64_t d = 0; d < v_dim; ++d) to[d] = f32_to_bf16(value[d]);
          break;
        }
        case KVType::int8:
          at.k_scale[slot] = quantise_i8(key, k_dim, at.k + slot * 4, kPageTokens * 4);
          at.v_scale[slot] = quantise_i8(value, v_dim, at.v + slot / 4 * v_stride * 4 + slot % 4, 0);
          break;
      }
    }
  }
}

// ---- the two products -------------------------------------------------------------------------

// Register tiles. With 32 registers of 16 lanes: up to 6 rows x 4 vectors of accumulators; a 16-lane
// vector takes two of the 16 AVX2 registers, so 6 rows x 1 vector there. No tile changes a bit.
template <class Isa>
constexpr int tile_vectors() {
  return alignof(typename Isa::F) == 64 ? 4 : 1;
}
constexpr int64_t kTileRows = 6;
constexpr int64_t kMaxCodecRows = 48;  // that a codec is given at once

// Ask for a row of bytes that the next page will read. Pages lie far apart in the pool, so the
// hardware's own prefetch starts anew at every one of them.
template <int nbytes>
static inline void fetch_ahead(const void* row) {
  for (int i = 0; i < nbytes; i += 64) __builtin_prefetch(static_cast<const char*>(row) + i);
}

// s[r][0..16 NV) = sum over d, in order, of rows[r][d] * k[d][0..16 NV); k: [k_dim][64].
// Per d: NV loads, NR broadcasts, NR * NV fused multiply-adds. ahead: null, or the same place of the
// page to be read next.
template <class Isa, class Cache, int NR, int NV, bool Ahead>
static inline void score_tile(const float* const* rows, const typename Cache::T* k, int64_t k_dim, float* s, int64_t lds,
                              const typename Cache::T* ahead) {
  using F = typename Isa::F;
  F acc[NR][NV];
  const float* q[NR];
  for (int r = 0; r < NR; ++r) {
    q[r] = rows[r];
    for (int i = 0; i < NV; ++i) acc[r][i] = Isa::zero();
  }
  for (int64_t d = 0; d < k_dim; ++d, k += capax::kPageTokens) {
    if constexpr (Ahead) fetch_ahead<16 * NV * sizeof(*k)>(ahead + d * capax::kPageTokens);
    F key[NV];
    for (int i = 0; i < NV; ++i) key[i] = Cache::load(k + 16 * i);
    for (int r = 0; r < NR; ++r) {
      const F x = Isa::set1(q[r][d]);
      for (int i = 0; i < NV; ++i) acc[r][i] = Isa::fma(x, key[i], acc[r][i]);
    }
  }
  for (int r = 0; r < NR; ++r)
    for (int i = 0; i < NV; ++i) Isa::store(s + r * lds + 16 * i, acc[r][i]);
}

// acc[r][0..16 NV) = fma over j in order of p[r][j] * v[j][0..16 NV), j in [0, n_keys).
// Per j: NV loads, NR broadcasts, NR * NV fused multiply-adds.
template <class Isa, class Cache, int NR, int NV, bool Ahead>
static inline void value_tile(const float* p, int64_t ldp, const typename Cache::T* v, int64_t v_stride, int64_t n_keys,
                              float* out, int64_t ldo, const typename Cache::T* ahead) {
  using F = typename Isa::F;
  F acc[NR][NV];
  for (int r = 0; r < NR; ++r)
    for (int i = 0; i < NV; ++i) acc[r][i] = Isa::load(out + r * ldo + 16 * i);
  for (int64_t j = 0; j < n_keys; ++j, v += v_stride) {
    if constexpr (Ahead) fetch_ahead<16 * NV * sizeof(*v)>(ahead + j * v_stride);
    F value[NV];
    for (int i = 0; i < NV; ++i) value[i] = Cache::load(v + 16 * i);
    for (int r = 0; r < NR; ++r) {
      const F x = Isa::set1(p[r * ldp + j]);
      for (int i = 0; i < NV; ++i) acc[r][i] = Isa::fma(x, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < NR; ++r)
    for (int i = 0; i < NV; ++i) Isa::store(out + r * ldo + 16 * i, acc[r][i]);
}

// Scores of NR rows against all 64 keys of a page.
template <class Isa, class Cache, int NR>
static void score_page(const float* const* rows, const typename Cache::T* k, int64_t k_dim, float* s, int64_t lds,
                       const typename Cache::T* ahead) {
  constexpr int NV = tile_vectors<Isa>();
  for (int i = 0; i < capax::kPageTokens; i += 16 * NV) {
    if (ahead)
      score_tile<Isa, Cache, NR, NV, true>(rows, k + i, k_dim, s + i, lds, ahead + i);
    else
      score_tile<Isa, Cache, NR, NV, false>(rows, k + i, k_dim, s + i, lds, nullptr);
  }
}

// Weighted values of NR rows over n_keys keys of a page.
template <class Isa, class Cache, int NR, int NV, bool Ahead>
static inline int64_t value_strip(int64_t d, const float* p, int64_t ldp, const typename Cache::T* v, int64_t v_stride,
                                  int64_t n_keys, float* out, int64_t ldo, const typename Cache::T* ahead) {
  for (; d + 16 * NV <= v_stride; d += 16 * NV)
    value_tile<Isa, Cache, NR, NV, Ahead>(p, ldp, v + d, v_stride, n_keys, out + d, ldo, ahead + (Ahead ? d : 0));
  return d;
}
template <class Isa, class Cache, int NR, bool Ahead>
static inline void value_strips(const float* p, int64_t ldp, const typename Cache::T* v, int64_t v_stride, int64_t n_keys,
                                float* out, int64_t ldo, const typename Cache::T* ahead) {
  int64_t d = 0;
  if constexpr (tile_vectors<Isa>() == 4) {
    d = value_strip<Isa, Cache, NR, 4, Ahead>(d, p, ldp, v, v_stride, n_keys, out, ldo, ahead);
    d = value_strip<Isa, Cache, NR, 2, Ahead>(d, p, ldp, v, v_stride, n_keys, out, ldo, ahead);
  }
  value_strip<Isa, Cache, NR, 1, Ahead>(d, p, ldp, v, v_stride, n_keys, out, ldo, ahead);
}
template <class Isa, class Cache, int NR>
static void value_page(const float* p, int64_t ldp, const typename Cache::T* v, int64_t v_stride, int64_t n_keys,
                       float* out, int64_t ldo, const typename Cache::T* ahead) {
  if (ahead)
    value_strips<Isa, Cache, NR, true>(p, ldp, v, v_stride, n_keys, out, ldo, ahead);
  else
    value_strips<Isa, Cache, NR, false>(p, ldp, v, v_stride, n_keys, out, ldo, nullptr);
}

// ---- the two products of an int8 cache ----------------------------------------------------------

// Scores of NR rows against 16 NV keys: per chunk of 64 channels one exact sum.
template <class Isa, int NR, int NV, bool Ahead>
static inline void score_bytes_tile(const ShortRow* rows, const uint8_t* k, int64_t n_numbers, const float* k_scale,
                                    float* s, int64_t lds, const uint8_t* ahead) {
  using F = typename Isa::F;
  F total[NR][NV];
  for (int64_t first = 0; first < n_numbers; first += kShortChunk) {
    typename Isa::I sums[NR][NV];
    const int64_t last = first + kShortChunk < n_numbers ? first + kShortChunk : n_numbers;
    ShortDot<Isa>::template sums<NR, NV, Ahead>(rows, k, capax::kPageTokens * 4, first, last, sums, ahead);
    for (int r = 0; r < NR; ++r) {
      const auto offset = Isa::iset1(-128 * rows[r].sums[first / kShortChunk]);  // bytes are codes plus 128
      for (int i = 0; i < NV; ++i) {
        const F part = Isa::from_i32(Isa::iadd(sums[r][i], offset));
        total[r][i] = first == 0 ? part : Isa::add(total[r][i], part);
      }
    }
  }
  for (int r = 0; r < NR; ++r)
    for (int i = 0; i < NV; ++i)
      Isa::store(s + r * lds + 16 * i,
                 Isa::mul(Isa::mul(total[r][i], Isa::set1(*rows[r].scale)), Isa::load(k_scale + 16 * i)));
}
// Weighted values of NR rows, 16 NV channels.
template <class Isa, int NR, int NV, bool Ahead>
static inline void value_bytes_tile(const ShortRow* rows, const uint8_t* v, int64_t v_stride, float* out, int64_t ldo,
                                    const uint8_t* ahead) {
  typename Isa::I sums[NR][NV];
  ShortDot<Isa>::template sums<NR, NV, Ahead>(rows, v, v_stride * 4, 0, capax::kPageTokens, sums, ahead);
  for (int r = 0; r < NR; ++r) {
    const auto offset = Isa::iset1(-128 * rows[r].sums[0]);
    const auto scale = Isa::set1(*rows[r].scale);
    for (int i = 0; i < NV; ++i) {
      float* to = out + r * ldo + 16 * i;
      Isa::store(to, Isa::fma(scale, Isa::from_i32(Isa::iadd(sums[r][i], offset)), Isa::load(to)));
    }
  }
}

// Two accumulators per row and vector of keys: 24 of 32 registers.
template <class Isa, int NR>
constexpr int byte_vectors() {
  return tile_vectors<Isa>() == 1 ? 1 : NR <= 3 ? 4 : 2;
}
template <class Isa, int NR>
static void score_bytes(const ShortRow* rows, const uint8_t* k, int64_t n_numbers, const float* k_scale, float* s,
                        int64_t lds, const uint8_t* ahead) {
  constexpr int NV = byte_vectors<Isa, NR>();
  for (int i = 0; i < capax::kPageTokens; i += 16 * NV) {
    if (ahead)
      score_bytes_tile<Isa, NR, NV, true>(rows, k + 4 * i, n_numbers, k_scale + i, s + i, lds, ahead + 4 * i);
    else
      score_bytes_tile<Isa, NR, NV, false>(rows, k + 4 * i, n_numbers, k_scale + i, s + i, lds, nullptr);
  }
}
template <class Isa, int NR, bool Ahead>
static inline void value_bytes_strips(const ShortRow* rows, const uint8_t* v, int64_t v_stride, float* out, int64_t ldo,
                                      const uint8_t* ahead) {
  constexpr int NV = byte_vectors<Isa, NR>();
  int64_t d = 0;
  for (; d + 16 * NV <= v_stride; d += 16 * NV)
    value_bytes_tile<Isa, NR, NV, Ahead>(rows, v + 4 * d, v_stride, out + d, ldo, Ahead ? ahead + 4 * d : nullptr);
  if constexpr (NV > 1)
    for (; d < v_stride; d += 16)
      value_bytes_tile<Isa, NR, 1, Ahead>(rows, v + 4 * d, v_stride, out + d, ldo, Ahead ? ahead + 4 * d : nullptr);
}
// memory: short_row_floats(64) floats for each row. p: weights of the page's 64 keys, of which those
// outside [begin, end) count nothing.
template <class Isa, int NR>
static void value_bytes(const float* p, int64_t ldp, int64_t begin, int64_t end, const uint8_t* v, int64_t v_stride,
                        const float* v_scale, float* memory, float* out, int64_t ldo, const uint8_t* ahead) {
  ShortRow rows[NR];
  for (int r = 0; r < NR; ++r) {
    float weights[capax::kPageTokens];
    if (begin == 0 && end == capax::kPageTokens) {
      for (int64_t j = 0; j < capax::kPageTokens; j += 16)
        Isa::store(weights + j, Isa::mul(Isa::load(p + r * ldp + j), Isa::load(v_scale + j)));
    } else {
      for (int64_t j = 0; j < capax::kPageTokens; ++j)
        weights[j] = j >= begin && j < end ? p[r * ldp + j] * v_scale[j] : 0.0f;
    }
    rows[r] = short_row_at(memory + r * short_row_floats(capax::kPageTokens), capax::kPageTokens);
    to_short_row<Isa>(weights, capax::kPageTokens, capax::kPageTokens, rows[r]);
  }
  if (ahead)
    value_bytes_strips<Isa, NR, true>(rows, v, v_stride, out, ldo, ahead);
  else
    value_bytes_strips<Isa, NR, false>(rows, v, v_stride, out, ldo, nullptr);
}

// Queries of a tile as short rows, in memory for `room` floats: of all rows at once if they fit, else
// of those asked for.
template <class Isa>
struct ShortQueries {
  float* memory;
  int64_t room, k_dim;
  int64_t n_ready = 0;

  int64_t n_numbers() const { return (k_dim + 3) / 4 * 4; }
  ShortRow at(int64_t row) const { return short_row_at(memory + row * short_row_floats(n_numbers()), n_numbers()); }
  template <class Query>
  void prepare(int64_t n_rows, const Query& query) {
    if (n_rows * short_row_floats(n_numbers()) > room) return;
    for (; n_ready < n_rows; ++n_ready) to_short_row<Isa>(query(n_ready), k_dim, n_numbers(), at(n_ready));
  }
  // Rows [first, first + n), n at most kTileRows.
  template <class Query>
  void rows(int64_t first, int64_t n, const Query& query, ShortRow* out) const {
    for (int64_t r = 0; r < n; ++r) {
      if (n_ready > 0) {
        out[r] = at(first + r);
      } else {
        out[r] = at(r);
        to_short_row<Isa>(query(first + r), k_dim, n_numbers(), out[r]);
      }
    }
  }
};

#define CAPAX_BY_ROWS(n, call)             \
  switch (n) {                             \
    case 1: { constexpr int NR = 1; call; break; } \
    case 2: { constexpr int NR = 2; call; break; } \
    case 3: { constexpr int NR = 3; call; break; } \
    case 4: { constexpr int NR = 4; call; break; } \
    case 5: { constexpr int NR = 5; call; break; } \
    default: { constexpr int NR = 6; call; break; } \
  }

// ---- one span ---------------------------------------------------------------------------------

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Query rows of one KV head: n_tokens x n_group, token-major.
struct Tile {
  int64_t token;     // first token
  int64_t n_rows;
  int64_t block;     // rows per register tile, an even split of n_rows
  float* scores;     // [n_rows][kSpanTokens]
  float* k_page;     // [k_dim][64] a page converted to float32
  float* v_page;     // [64][v_stride]
  float* of_codec;   // its scratch
};

static inline int64_t row_position(const capax::Attend& a, const Tile& tile, int64_t row) {
  return a.position0 + tile.token + row / a.n_group;
}

// Keys of a span, relative to its start, that a row sees; empty if end <= begin.
static inline capax::Range keys_in_span(const capax::Attend& a, int64_t position, int64_t span) {
  const capax::Range keys = capax::visible_keys(a, position);
  const int64_t start = span * capax::kSpanTokens;
  return {most(keys.begin - start, 0), least(keys.end - start, capax::kSpanTokens)};
}

// Keys of the span that any row of [first, last] sees. Positions ascend, so both ends do.
static inline capax::Range keys_of_rows(const capax::Attend& a, const Tile& tile, int64_t first, int64_t last, int64_t span) {
  return {keys_in_span(a, row_position(a, tile, first), span).begin, keys_in_span(a, row_position(a, tile, last), span).end};
}

// Turn raw scores into weights: scale, mask, subtract the maximum, exponentiate. Returns m and l.
// Writes weights for the whole vectors of `tile_keys`; those that the row does not see become 0.
template <class Isa>
static inline void weigh_row(float* s, capax::Range keys, capax::Range tile_keys, float scale, float* m, float* l) {
  using F = typename Isa::F;
  const F lowest = Isa::set1(-__builtin_inff()), factor = Isa::set1(scale);
  const int64_t begin = tile_keys.begin / 16 * 16, end = tile_keys.end;
  static const float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F lane = Isa::load(kLane), first = Isa::set1(static_cast<float>(keys.begin) - 0.5f),
          last = Isa::set1(static_cast<float>(keys.end) - 0.5f);
  F top = lowest;
  for (int64_t j = begin; j < end; j += 16) {
    F x = Isa::mul(Isa::load(s + j), factor);
    if (j < keys.begin || j + 16 > keys.end) {
      const F index = Isa::add(lane, Isa::set1(static_cast<float>(j)));
      x = Isa::lt_select(index, first, lowest, Isa::lt_select(index, last, x, lowest));
    }
    Isa::store(s + j, x);
    top = Isa::max(x, top);
  }
  *m = Isa::hmax(top);
  const F max = Isa::set1(*m);
  F acc[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
  for (int64_t j = begin; j < end; j += 16) {
    F p = exp_nonpositive<Isa>(Isa::sub(Isa::load(s + j), max));
    if (j < keys.begin || j + 16 > keys.end) {  // exactly 0 even if the maximum is not finite
      const F index = Isa::add(lane, Isa::set1(static_cast<float>(j)));
      p = Isa::lt_select(index, first, Isa::zero(), Isa::lt_select(index, last, p, Isa::zero()));
    }
    Isa::store(s + j, p);
    acc[j / 16 % 4] = Isa::add(acc[j / 16 % 4], p);
  }
  *l = Isa::hsum(Isa::add(Isa::add(acc[0], acc[1]), Isa::add(acc[2], acc[3])));
}

// Keys or values of a page as float32, so that a tile of many rows converts once.
template <class Isa, class Cache>
static inline void convert(const typename Cache::T* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += 16) Isa::store(to + i, Cache::load(from + i));
}

static inline const float* row_query(const capax::Attend& a, const Tile& tile, int32_t kv_head, int64_t row) {
  return a.q + (tile.token + row / a.n_group) * a.ldq + (kv_head * a.n_group + row % a.n_group) * a.view.layout.k_dim;
}

// ---- pages of codes -----------------------------------------------------------------------------

// One head of a page that is read from codes: its block, and which page of it.
struct CodedPage {
  capax::CodeBlock block;
  int64_t part;
};
static inline bool is_coded(const capax::Attend& a, int64_t page) { return page < a.codes.n_pages; }
static inline CodedPage coded_page_at(const capax::Attend& a, int64_t page, int64_t kv_head) {
  const int64_t n_parts = a.codes.codec->block_tokens() / capax::kPageTokens;
  return {capax::code_block_at(a.codes, page / n_parts, kv_head), page % n_parts};
}

// Ask for the codes of a page that will be read next.
static inline void fetch_codes_ahead(const capax::Attend& a, int64_t page, int64_t kv_head, bool keys) {
  const CodedPage next = coded_page_at(a, page, kv_head);
  const capax::CodeSize size = a.codes.codec->size(a.codes.layer);
  const int64_t n_parts = a.codes.codec->block_tokens() / capax::kPageTokens;
  const int64_t nbytes = (keys ? size.k_nbytes : size.v_nbytes) / n_parts;
  const uint8_t* from = (keys ? next.block.k : next.block.v) + next.part * nbytes;
  for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i);
}

// Scores and weighted values of all rows of a tile by the codec itself.
static inline void score_codes(const capax::Attend& a, const Tile& tile, const CodedPage& page, int32_t kv_head, float* s) {
  const float *rows[kMaxCodecRows], *tables[kMaxCodecRows];
  const int64_t n_heads = int64_t{a.n_group} * a.view.layout.n_kv_heads;
  for (int64_t first = 0; first < tile.n_rows; first += kMaxCodecRows) {
    const int64_t n = least(kMaxCodecRows, tile.n_rows - first);
    for (int64_t r = 0; r < n; ++r) {
      const int64_t row = first + r, token = tile.token + row / a.n_group;
      rows[r] = row_query(a, tile, kv_head, row);
      if (a.tables) tables[r] = a.tables + (token * n_heads + kv_head * a.n_group + row % a.n_group) * a.ld_table;
    }
    a.codes.codec->score(page.block, page.part, rows, a.tables ? tables : nullptr, n, s + first * capax::kSpanTokens,
                         capax::kSpanTokens, tile.of_codec);
  }
}
// Pages [begin, end) of a span, which begins at page first_page; `scores`: the tile's weights.
static inline void add_codes(const capax::Attend& a, const Tile& tile, int32_t kv_head, int64_t first_page, int64_t begin,
                             int64_t end, capax::Range tile_keys, float* out, int64_t ldo) {
  using namespace capax;
  CodeBlock blocks[kSpanTokens / kPageTokens];
  int64_t parts[kSpanTokens / kPageTokens];
  for (int64_t page = begin; page < end; ++page) {
    const CodedPage codes = coded_page_at(a, first_page + page, kv_head);
    blocks[page - begin] = codes.block;
    parts[page - begin] = codes.part;
  }
  // Weights are there for the whole vectors of `tile_keys`: 0 around them.
  const int64_t front = tile_keys.begin / 16 * 16, back = (tile_keys.end + 15) / 16 * 16;
  for (int64_t row = 0; row < tile.n_rows; ++row) {
    float* p = tile.scores + row * kSpanTokens;
    for (int64_t j = begin * kPageTokens; j < front; ++j) p[j] = 0.0f;
    for (int64_t j = back; j < end * kPageTokens; ++j) p[j] = 0.0f;
  }
  for (int64_t first = 0; first < tile.n_rows; first += kMaxCodecRows)
    a.codes.codec->add_values(blocks, parts, end - begin, tile.scores + first * kSpanTokens + begin * kPageTokens,
                              kSpanTokens, least(kMaxCodecRows, tile.n_rows - first), out + first * ldo, ldo, tile.of_codec);
}

// ---- one span, continued ------------------------------------------------------------------------

// Partials of a tile's rows over one span: rows without a visible key are left alone.
template <class Isa, class Cache>
static void span_tile(const capax::Attend& a, const Tile& tile, int32_t kv_head, int64_t span, float* partial) {
  using namespace capax;
  const KVLayout& layout = a.view.layout;
  const int64_t k_dim = layout.k_dim, v_stride = kv_v_stride(layout), ld_partial = partial_floats(layout);
  const Range tile_keys = keys_of_rows(a, tile, 0, tile.n_rows - 1, span);
  const int64_t first_page = span * (kSpanTokens / kPageTokens);
  const int64_t page_begin = tile_keys.begin / kPageTokens, page_end = (tile_keys.end + kPageTokens - 1) / kPageTokens;
  const bool converts = !Cache::scaled && sizeof(typename Cache::T) < 4 && tile.n_rows > tile.block;
  const auto query = [&](int64_t row) { return row_query(a, tile, kv_head, row); };
  ShortQueries<Isa> queries{tile.k_page, kPageTokens * k_dim, k_dim};
  if constexpr (Cache::scaled) queries.prepare(tile.n_rows, query);

  // A tile of few rows reads every byte once, the keys of all pages and then their values, and asks for
  // the page that comes next. One core, 94 MB of f16 cache (4096 tokens, 30 layers of 3 x 64): 16 GB/s
  // without, 38 GB/s with it, 32 GB/s two pages ahead, where a plain read gives 53 (2026-11-22, EPYC
  // Turin). From the second-level cache it is 67 GB/s, 0.9 of the bound by multiply-adds.
  const bool by_stream = tile.n_rows <= tile.block;
  const auto page_ahead = [&](int64_t i) -> const typename Cache::T* {
    const int64_t n_pages = page_end - page_begin, later = i + 1;
    if (!by_stream || later == 2 * n_pages) return nullptr;
    const int64_t page = first_page + page_begin + later % n_pages;
    if (is_coded(a, page)) {
      fetch_codes_ahead(a, page, kv_head, later < n_pages);
      return nullptr;
    }
    const KVHead at = kv_head_at(a.view, page, kv_head);
    if constexpr (Cache::scaled) fetch_ahead<kPageTokens * sizeof(float)>(later < n_pages ? at.k_scale : at.v_scale);
    return reinterpret_cast<const typename Cache::T*>(later < n_pages ? at.k : at.v);
  };

  for (int64_t page = page_begin; page < page_end; ++page) {
    const auto* ahead = page_ahead(page - page_begin);
    const bool coded = is_coded(a, first_page + page), by_copy = coded || converts;
    KVHead at{};
    if (coded) {
      const CodedPage codes = coded_page_at(a, first_page + page, kv_head);
      if (by_stream && a.codes.codec->adds_codes(a.codes.layer)) fetch_codes_ahead(a, first_page + page, kv_head, false);
      if (a.codes.codec->scores_codes(a.codes.layer)) {
        score_codes(a, tile, codes, kv_head, tile.scores + page * kPageTokens);
        continue;
      }
      a.codes.codec->decode_keys(codes.block, codes.part, tile.k_page, tile.of_codec);
    } else {
      at = kv_head_at(a.view, first_page + page, kv_head);
      if constexpr (!Cache::scaled)
        if (converts)
          convert<Isa, Cache>(reinterpret_cast<const typename Cache::T*>(at.k), k_dim * kPageTokens, tile.k_page);
    }
    for (int64_t row = 0; row < tile.n_rows; row += tile.block) {
      const int64_t n = least(tile.block, tile.n_rows - row);
      const Range keys = keys_of_rows(a, tile, row, row + n - 1, span);
      if (keys.end <= page * kPageTokens || keys.begin >= (page + 1) * kPageTokens) continue;
      float* s = tile.scores + row * kSpanTokens + page * kPageTokens;
      if constexpr (Cache::scaled) {  // never beside codes
        ShortRow rows[kTileRows];
        queries.rows(row, n, query, rows);
        CAPAX_BY_ROWS(n, (score_bytes<Isa, NR>(rows, at.k, queries.n_numbers(), at.k_scale, s, kSpanTokens, ahead)))
      } else {
        const float* rows[kTileRows];
        for (int64_t r = 0; r < n; ++r) rows[r] = query(row + r);
        if (by_copy) {
          CAPAX_BY_ROWS(n, (score_page<Isa, F32Cache<Isa>, NR>(rows, tile.k_page, k_dim, s, kSpanTokens, nullptr)))
        } else {
          const auto* k = reinterpret_cast<const typename Cache::T*>(at.k);
          CAPAX_BY_ROWS(n, (score_page<Isa, Cache, NR>(rows, k, k_dim, s, kSpanTokens, ahead)))
        }
      }
    }
  }

  for (int64_t row = 0; row < tile.n_rows; ++row) {
    const Range keys = keys_in_span(a, row_position(a, tile, row), span);
    float* out = partial + row * ld_partial;
    if (keys.end <= keys.begin) {  // weight 0 for the rest of its register tile
      memset(tile.scores + row * kSpanTokens, 0, kSpanTokens * sizeof(float));
      continue;
    }
    weigh_row<Isa>(tile.scores + row * kSpanTokens, keys, tile_keys, a.scale, out, out + 1);
    memset(out + 16, 0, static_cast<size_t>(v_stride) * sizeof(float));
  }

  // Codes are older than what is read exactly: their pages come first.
  int64_t value_begin = page_begin;
  const int64_t n_coded = least(a.codes.n_pages - first_page, page_end) - page_begin;
  if (n_coded > 0 && a.codes.codec->adds_codes(a.codes.layer)) {
    value_begin += n_coded;
    add_codes(a, tile, kv_head, first_page, page_begin, value_begin, tile_keys, partial + 16, ld_partial);
  }
  for (int64_t page = value_begin; page < page_end; ++page) {
    const auto* ahead = page_ahead(page_end - page_begin + page - page_begin);
    const bool coded = is_coded(a, first_page + page), by_copy = coded || converts;
    KVHead at{};
    if (coded) {
      const CodedPage codes = coded_page_at(a, first_page + page, kv_head);
      a.codes.codec->decode_values(codes.block, codes.part, tile.v_page, tile.of_codec);
    } else {
      at = kv_head_at(a.view, first_page + page, kv_head);
      if constexpr (!Cache::scaled)
        if (converts)
          convert<Isa, Cache>(reinterpret_cast<const typename Cache::T*>(at.v), v_stride * kPageTokens, tile.v_page);
    }
    for (int64_t row = 0; row < tile.n_rows; row += tile.block) {
      const int64_t n = least(tile.block, tile.n_rows - row);
      const Range keys = keys_of_rows(a, tile, row, row + n - 1, span);
      const int64_t begin = most(keys.begin - page * kPageTokens, 0), end = least(keys.end - page * kPageTokens, kPageTokens);
      if (end <= begin) continue;
      float* p = tile.scores + row * kSpanTokens + page * kPageTokens;
      float* out = partial + row * ld_partial + 16;
      if constexpr (Cache::scaled) {
        CAPAX_BY_ROWS(n, (value_bytes<Isa, NR>(p, kSpanTokens, begin, end, at.v, v_stride, at.v_scale, tile.v_page, out,
                                               ld_partial, ahead)))
      } else if (by_copy) {
        CAPAX_BY_ROWS(n, (value_page<Isa, F32Cache<Isa>, NR>(p + begin, kSpanTokens, tile.v_page + begin * v_stride,
                                                             v_stride, end - begin, out, ld_partial, nullptr)))
      } else {
        const auto* v = reinterpret_cast<const typename Cache::T*>(at.v);
        CAPAX_BY_ROWS(n, (value_page<Isa, Cache, NR>(p + begin, kSpanTokens, v + begin * v_stride, v_stride, end - begin,
                                                     out, ld_partial, ahead)))
      }
    }
  }
}

template <class Isa>
static inline void span_tile_of(const capax::Attend& a, const Tile& tile, int32_t kv_head, int64_t span, float* partial) {
  switch (a.view.layout.type) {
    case capax::KVType::f32: return span_tile<Isa, F32Cache<Isa>>(a, tile, kv_head, span, partial);
    case capax::KVType::f16: return span_tile<Isa, F16Cache<Isa>>(a, tile, kv_head, span, partial);
    case capax::KVType::bf16: return span_tile<Isa, Bf16Cache<Isa>>(a, tile, kv_head, span, partial);
    case capax::KVType::int8: return span_tile<Isa, I8Cache<Isa>>(a, tile, kv_head, span, partial);
  }
}

// ---- one span of several sequences --------------------------------------------------------------

// As span_tile for one token of each member, with rows member-major. What differs is only who reads a
// page: one pass over all rows for a page that all members share, one per member for a page of its own.
template <class Isa, class Cache>
static void shared_span(const capax::Attend* members, int64_t n_members, int32_t kv_head, int64_t span,
                        int64_t n_shared_pages, float* scratch, float* const* partials) {
  using namespace capax;
  const KVLayout& layout = members[0].view.layout;
  const int64_t k_dim = layout.k_dim, v_stride = kv_v_stride(layout), n_group = members[0].n_group;
  const int64_t n_rows = n_members * n_group, n_blocks = (n_rows + kTileRows - 1) / kTileRows;
  const int64_t block = (n_rows + n_blocks - 1) / n_blocks;
  const int64_t first_page = span * (kSpanTokens / kPageTokens);
  const int64_t shared_end = least(most(n_shared_pages - first_page, 0), kSpanTokens / kPageTokens);
  const bool by_copy = !Cache::scaled && sizeof(typename Cache::T) < 4 && n_rows > block;
  float* scores = scratch;                          // [n_rows][kSpanTokens]
  float* sums = scores + n_rows * kSpanTokens;      // [n_rows][v_stride]
  float* converted = sums + n_rows * v_stride;      // a page's keys or values as float32, or short rows

  const auto row_of = [&](int64_t row) {
    const Attend& a = members[row / n_group];
    return a.q + (kv_head * n_group + row % n_group) * k_dim;
  };
  const auto head_at = [&](int64_t member, int64_t page) {
    return kv_head_at(members[member].view, first_page + page, kv_head);
  };
  ShortQueries<Isa> queries{converted, kPageTokens * k_dim, k_dim};
  if constexpr (Cache::scaled) queries.prepare(n_rows, row_of);
  // Rows [first, first + n), n <= kTileRows, over the keys of one page.
  const auto score = [&](int64_t first, int64_t n, int64_t page, const KVHead& at, const float* copy) {
    float* s = scores + first * kSpanTokens + page * kPageTokens;
    if constexpr (Cache::scaled) {
      ShortRow rows[kTileRows];
      queries.rows(first, n, row_of, rows);
      CAPAX_BY_ROWS(n, (score_bytes<Isa, NR>(rows, at.k, queries.n_numbers(), at.k_scale, s, kSpanTokens, nullptr)))
    } else {
      const float* rows[kTileRows];
      for (int64_t r = 0; r < n; ++r) rows[r] = row_of(first + r);
      if (copy) {
        CAPAX_BY_ROWS(n, (score_page<Isa, F32Cache<Isa>, NR>(rows, copy, k_dim, s, kSpanTokens, nullptr)))
      } else {
        const auto* k = reinterpret_cast<const typename Cache::T*>(at.k);
        CAPAX_BY_ROWS(n, (score_page<Isa, Cache, NR>(rows, k, k_dim, s, kSpanTokens, nullptr)))
      }
    }
  };
  const auto add_values = [&](int64_t first, int64_t n, int64_t page, int64_t n_keys, const KVHead& at, const float* copy) {
    float* p = scores + first * kSpanTokens + page * kPageTokens;
    float* out = sums + first * v_stride;
    if constexpr (Cache::scaled) {
      CAPAX_BY_ROWS(n, (value_bytes<Isa, NR>(p, kSpanTokens, 0, n_keys, at.v, v_stride, at.v_scale,
                                             converted + kPageTokens * k_dim, out, v_stride, nullptr)))
    } else if (copy) {
      CAPAX_BY_ROWS(n, (value_page<Isa, F32Cache<Isa>, NR>(p, kSpanTokens, copy, v_stride, n_keys, out, v_stride, nullptr)))
    } else {
      const auto* v = reinterpret_cast<const typename Cache::T*>(at.v);
      CAPAX_BY_ROWS(n, (value_page<Isa, Cache, NR>(p, kSpanTokens, v, v_stride, n_keys, out, v_stride, nullptr)))
    }
  };
  const auto end_of = [&](int64_t member) { return keys_in_span(members[member], members[member].position0, span).end; };

  for (int64_t page = 0; page < shared_end; ++page) {
    const KVHead at = head_at(0, page);
    if constexpr (!Cache::scaled)
      if (by_copy)
        convert<Isa, Cache>(reinterpret_cast<const typename Cache::T*>(at.k), k_dim * kPageTokens, converted);
    for (int64_t row = 0; row < n_rows; row += block)
      score(row, least(block, n_rows - row), page, at, by_copy ? converted : nullptr);
  }
  for (int64_t m = 0; m < n_members; ++m)
    for (int64_t page = shared_end; page * kPageTokens < end_of(m); ++page)
      for (int64_t g = 0; g < n_group; g += kTileRows)
        score(m * n_group + g, least(kTileRows, n_group - g), page, head_at(m, page), nullptr);

  for (int64_t row = 0; row < n_rows; ++row) {
    const Attend& a = members[row / n_group];
    const Range keys = keys_in_span(a, a.position0, span);
    float* out = partials[row / n_group] + row % n_group * partial_floats(layout);
    if (keys.end > 0) weigh_row<Isa>(scores + row * kSpanTokens, keys, keys, a.scale, out, out + 1);
    memset(sums + row * v_stride, 0, static_cast<size_t>(v_stride) * sizeof(float));
  }

  for (int64_t page = 0; page < shared_end; ++page) {
    const KVHead at = head_at(0, page);
    if constexpr (!Cache::scaled)
      if (by_copy)
        convert<Isa, Cache>(reinterpret_cast<const typename Cache::T*>(at.v), v_stride * kPageTokens, converted);
    for (int64_t row = 0; row < n_rows; row += block)
      add_values(row, least(block, n_rows - row), page, kPageTokens, at, by_copy ? converted : nullptr);
  }
  for (int64_t m = 0; m < n_members; ++m)
    for (int64_t page = shared_end; page * kPageTokens < end_of(m); ++page)
      for (int64_t g = 0; g < n_group; g += kTileRows)
        add_values(m * n_group + g, least(kTileRows, n_group - g), page, least(end_of(m) - page * kPageTokens, kPageTokens),
                   head_at(m, page), nullptr);

  for (int64_t row = 0; row < n_rows; ++row)
    if (end_of(row / n_group) > 0)
      memcpy(partials[row / n_group] + row % n_group * partial_floats(layout) + 16, sums + row * v_stride,
             static_cast<size_t>(v_stride) * sizeof(float));
}

// ---- merging spans ----------------------------------------------------------------------------

// (m, l, acc) <- the union of two partials, the later span second.
template <class Isa>
static inline void merge_into(float* into, const float* next, int64_t v_stride) {
  using F = typename Isa::F;
  const float m = into[0] > next[0] ? into[0] : next[0];
  float factors[16] = {into[0] - m, next[0] - m};
  Isa::store(factors, exp_nonpositive<Isa>(Isa::load(factors)));
  const F a = Isa::set1(factors[0]), b = Isa::set1(factors[1]);
  into[1] = into[1] * factors[0] + next[1] * factors[1];
  into[0] = m;
  for (int64_t d = 16; d < 16 + v_stride; d += 16)
    Isa::store(into + d, Isa::fma(Isa::load(next + d), b, Isa::mul(Isa::load(into + d), a)));
}

// out = acc / l. Adding +0 makes the zero of a sum that underflowed to -0 the same in every tile.
template <class Isa>
static inline void finish_row(const float* partial, int64_t v_dim, float* out) {
  const typename Isa::F l = Isa::set1(partial[1]);
  for (int64_t d = 0; d < v_dim; d += 16)
    Isa::store_n(out + d, Isa::add(Isa::div(Isa::load(partial + 16 + d), l), Isa::zero()),
                 v_dim - d < 16 ? static_cast<int>(v_dim - d) : 16);
}

// ---- the kernels ------------------------------------------------------------------------------

static inline Tile tile_of(const capax::Attend& a, int64_t token, int64_t n_tokens, float* scratch) {
  const int64_t n_rows = n_tokens * a.n_group, n_blocks = (n_rows + kTileRows - 1) / kTileRows;
  float* k_page = scratch + n_rows * capax::kSpanTokens;
  float* v_page = k_page + capax::kPageTokens * a.view.layout.k_dim;
  return {token, n_rows, (n_rows + n_blocks - 1) / n_blocks, scratch, k_page, v_page,
          v_page + capax::kPageTokens * capax::kv_v_stride(a.view.layout)};
}

template <class Isa>
static void attend_tokens(const capax::Attend& a, int32_t kv_head, int64_t token_begin, int64_t token_end, float* scratch) {
  using namespace capax;
  const KVLayout& layout = a.view.layout;
  const int64_t v_stride = kv_v_stride(layout), ld_partial = partial_floats(layout), step = attend_tile_tokens(a.n_group);
  for (int64_t token = token_begin; token < token_end; token += step) {
    const int64_t n_tokens = least(step, token_end - token), n_rows = n_tokens * a.n_group;
    float* whole = scratch;  // what the spans so far gave
    float* next = whole + n_rows * ld_partial;
    const Tile tile = tile_of(a, token, n_tokens, next + n_rows * ld_partial);
    const int64_t span_begin = visible_spans(a, row_position(a, tile, 0)).begin;
    const int64_t span_end = visible_spans(a, row_position(a, tile, n_rows - 1)).end;
    for (int64_t span = span_begin; span < span_end; ++span) {
      span_tile_of<Isa>(a, tile, kv_head, span, next);
      for (int64_t row = 0; row < n_rows; ++row) {
        const Range spans = visible_spans(a, row_position(a, tile, row));
        if (span < spans.begin || span >= spans.end) continue;
        if (span == spans.begin)
          memcpy(whole + row * ld_partial, next + row * ld_partial, static_cast<size_t>(ld_partial) * sizeof(float));
        else
          merge_into<Isa>(whole + row * ld_partial, next + row * ld_partial, v_stride);
      }
    }
    for (int64_t row = 0; row < n_rows; ++row)
      finish_row<Isa>(whole + row * ld_partial, layout.v_dim,
                      a.out + (token + row / a.n_group) * a.ldo + (kv_head * a.n_group + row % a.n_group) * layout.v_dim);
  }
}

template <class Isa>
static void attend_one_span(const capax::Attend& a, int32_t kv_head, int64_t token, int64_t span, float* scratch,
                            float* partial) {
  span_tile_of<Isa>(a, tile_of(a, token, 1, scratch), kv_head, span, partial);
}

template <class Isa>
static void attend_shared_span(const capax::Attend* members, int64_t n_members, int32_t kv_head, int64_t span,
                               int64_t n_shared_pages, float* scratch, float* const* partials) {
  using namespace capax;
  switch (members[0].view.layout.type) {
    case KVType::f32: return shared_span<Isa, F32Cache<Isa>>(members, n_members, kv_head, span, n_shared_pages, scratch, partials);
    case KVType::f16: return shared_span<Isa, F16Cache<Isa>>(members, n_members, kv_head, span, n_shared_pages, scratch, partials);
    case KVType::bf16: return shared_span<Isa, Bf16Cache<Isa>>(members, n_members, kv_head, span, n_shared_pages, scratch, partials);
    case KVType::int8: return shared_span<Isa, I8Cache<Isa>>(members, n_members, kv_head, span, n_shared_pages, scratch, partials);
  }
}

template <class Isa>
static void merge_spans(const capax::Attend& a, int32_t kv_head, int64_t token, float* partials, int64_t span_stride) {
  using namespace capax;
  const KVLayout& layout = a.view.layout;
  const Range spans = visible_spans(a, a.position0 + token);
  for (int64_t g = 0; g < a.n_group; ++g) {
    float* whole = partials + g * partial_floats(layout);
    for (int64_t i = 1; i < spans.end - spans.begin; ++i)
      merge_into<Isa>(whole, whole + i * span_stride, kv_v_stride(layout));
    finish_row<Isa>(whole, layout.v_dim, a.out + token * a.ldo + (kv_head * a.n_group + g) * layout.v_dim);
  }
}

#undef CAPAX_BY_ROWS

// As conversion never rounds, this is what a tile that converts sees.
template <class Isa>
static void read_page(const capax::KVView& view, int64_t page, int32_t kv_head, float* k, float* v) {
  using namespace capax;
  const KVHead at = kv_head_at(view, page, kv_head);
  const int64_t n_k = kPageTokens * view.layout.k_dim, n_v = kPageTokens * kv_v_stride(view.layout);
  const auto* k16 = reinterpret_cast<const uint16_t*>(at.k);
  const auto* v16 = reinterpret_cast<const uint16_t*>(at.v);
  switch (view.layout.type) {
    case KVType::f32:
      memcpy(k, at.k, static_cast<size_t>(n_k) * sizeof(float));
      memcpy(v, at.v, static_cast<size_t>(n_v) * sizeof(float));
      return;
    case KVType::f16: return convert<Isa, F16Cache<Isa>>(k16, n_k, k), convert<Isa, F16Cache<Isa>>(v16, n_v, v);
    case KVType::bf16: return convert<Isa, Bf16Cache<Isa>>(k16, n_k, k), convert<Isa, Bf16Cache<Isa>>(v16, n_v, v);
    case KVType::int8: return;  // has scales besides
  }
}

template <class Isa>
constexpr capax::AttentionKernels attention_kernels() {
  return {append_kv<Isa>, read_page<Isa>, attend_tokens<Isa>, attend_one_span<Isa>, attend_shared_span<Isa>, merge_spans<Isa>};
}

}  // namespace
