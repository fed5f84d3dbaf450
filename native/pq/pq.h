// Product quantisation of head vectors: a vector is cut into sub-vectors, and each is replaced by the
// index of its nearest centroid.
//
//   vector of n_subspaces * sub_dim numbers; 2^n_bits centroids per sub-space, n_bits 1 .. 12
//
//   codes of a page (64 tokens) = sub-spaces one after another, 8 * n_bits bytes each:
//     | plane of 8 bits: 64 bytes | of 4 bits: 32 | of 2 bits: 16 | of 1 bit: 8 |  those that n_bits has
//     token t of a plane of w bits: byte t % 8w, shifted by w * (t / 8w)
//   so 8 bits are plain bytes in the order of the tokens, and 6 bits take 48 bytes, not 64.
//
// Not a number. The last centroid of sub-space 0 is NaN: a vector with a value that is not finite gets
// this code there, and comes back as not finite.
//
// Centroids are bfloat16: a look-up becomes a float32 by a shift, and 2^-9 of a centroid is little
// beside the distance to it.
//
// One arithmetic for every instruction set. The distance of x to a centroid c is, in this order,
//   t = (x_0 - c_0)^2;  t = fma(x_i - c_i, x_i - c_i, t) for i = 1 ..
// and the first centroid of least distance is the nearest. Weighted values of several pages are added
// as sum[t % 16] = fma(p_t, v_t, sum[t % 16]) for t in order, and the 16 sums in the order of hsum.
#pragma once

#include <stdint.h>

namespace capax {

constexpr int64_t kPQTokens = 64;  // of a page
constexpr int32_t kMaxPQBits = 12;
constexpr int32_t kMaxSubDim = 32;

// The centroids of keys or of values of one head, in the forms that the kernels read.
struct PQTable {
  int32_t n_subspaces;
  int32_t sub_dim;
  int32_t n_bits;
  const uint16_t* centroids;  // [n_subspaces][2^n_bits][sub_dim] bfloat16
  // n_bits <= 8, else null: [n_subspaces][sub_dim][2][256], the low bytes of the same, then the high ones
  const uint8_t* planes;
};

static inline int64_t pq_n_centroids(const PQTable& table) { return int64_t{1} << table.n_bits; }
static inline int64_t pq_dim(const PQTable& table) { return static_cast<int64_t>(table.n_subspaces) * table.sub_dim; }
static inline int64_t pq_row_nbytes(int32_t n_bits) { return 8 * static_cast<int64_t>(n_bits); }
static inline int64_t pq_page_nbytes(int64_t n_subspaces, int32_t n_bits) { return n_subspaces * pq_row_nbytes(n_bits); }

// How the products of a score are added: along the whole vector, or within each sub-space first, as a
// look-up table does it.
enum class PQSum : int32_t { along_vector = 0, by_subspace = 1 };

struct PQKernels {
  // index[i] = nearest of n_centroids centroids [n_centroids][dim] to point i, i < n, n a multiple of 16;
  // coordinate d of point i: x[d * ldx + i]. distance: [n] or null.
  void (*nearest)(const float* x, int64_t ldx, int64_t n, const float* centroids, int64_t n_centroids, int64_t dim,
                  int32_t* index, float* distance);
  // Codes of 64 vectors; coordinate d of vector t: x[d * 64 + t]. scratch: 2^n_bits * sub_dim floats.
  void (*encode)(const PQTable& table, const float* x, uint8_t* codes, float* scratch);
  // out[d * 64 + t]
  void (*decode_columns)(const PQTable& table, const uint8_t* codes, float* out);
  // out[t * stride + d], zeros beyond the vector
  void (*decode_rows)(const PQTable& table, const uint8_t* codes, int64_t stride, float* out);
  // table_out[m * 2^n_bits + c] = q_m . centroid c of sub-space m, in order: q_0 c_0, then fma
  void (*prepare)(const PQTable& table, const float* q, float* table_out);
  // s[r * lds + t] = q_r . vector t, for 1 .. 48 rows. By sub-space the tables of `prepare` may be given
  // instead (null: computed from the centroids): the same bits.
  // scratch: pq_page_floats(dim) floats.
  void (*score)(const PQTable& table, PQSum sum, const uint8_t* codes, const float* const* q, const float* const* tables,
                int64_t n_rows, float* s, int64_t lds, float* scratch);
  // out[r * ldo + d] += sum over the n_pages pages of 64 tokens, in order, of p[r * ldp + t] * vector t,
  // for 1 .. 48 rows and d below the dimension. scratch: n_pages * pq_page_floats(dim) floats.
  void (*add_values)(const PQTable& table, const uint8_t* const* codes, int64_t n_pages, const float* p, int64_t ldp,
                     int64_t n_rows, float* out, int64_t ldo, float* scratch);
  // n a multiple of 16
  void (*to_float16)(const float* x, int64_t n, uint16_t* out);
  void (*from_float16)(const uint16_t* x, int64_t n, float* out);
};

constexpr int64_t kMaxPQPages = 8;  // of one call of add_values
static inline int64_t pq_page_floats(int64_t dim) { return kPQTokens * ((dim + 15) / 16 * 16); }

}  // namespace capax
