// Asymmetric uniform quantisation of pages of keys and values, bit-packed.
//
// A page is a matrix of n_rows x n_cols floats (n_cols a multiple of 16). Groups of values share a
// scale s and a zero z, stored in f16: z = min, s = (max - min) / (2^bits - 1), and, against the
// stored ones, q = clip(round((x - z) / s), 0, 2^bits - 1) and x^ = fma(q, s, z). A group with a
// non-finite value gets z = NaN: none of it comes back as a number.
//
//   by_row:    a group is `group` neighbouring columns of a row; numbers [n_rows][groups of a row]
//   by column: a group is `group` neighbouring rows of a column; numbers [n_rows / group][n_cols]
//
// Codes go in vectors of 16 columns, row after row, 8 vectors (v = 0 .. 7) at a time:
//   8 bits | v0: 16 bytes | v1 | ... | v7 |
//   4 bits | v0 + 16 v1: 16 bytes | v2 + 16 v3 | v4 + 16 v5 | v6 + 16 v7 |
//   2 bits | v0 + 4 v1 + 16 v2 + 64 v3: 16 bytes | v4 .. v7 |
//   3 bits | the low two bits as for 2: 32 bytes | third bits: v0 + 2 v1 + ... + 128 v7: 16 bytes |
#pragma once

#include <stdint.h>

#include "norms/norms.h"

namespace capax {

struct UniformShape {
  int64_t n_rows;   // n_rows * n_cols is a multiple of 128
  int64_t n_cols;
  int64_t n_valid;  // columns that hold values; the rest are padding
  int64_t group;    // by_row: a multiple of 16, or n_valid; by column: a divisor of n_rows
  int32_t bits;     // 2, 3, 4 or 8
  bool by_row;
};

static inline int64_t uniform_row_groups(const UniformShape& shape) {
  return (shape.n_valid + shape.group - 1) / shape.group;
}
static inline int64_t uniform_groups(const UniformShape& shape) {
  return shape.by_row ? shape.n_rows * uniform_row_groups(shape) : shape.n_rows / shape.group * shape.n_cols;
}
static inline int64_t uniform_code_nbytes(const UniformShape& shape) {
  return shape.n_rows * shape.n_cols / 8 * shape.bits;
}
static inline int64_t uniform_scratch_floats(const UniformShape& shape) {
  return 2 * ((uniform_groups(shape) + 15) / 16 * 16);
}

struct UniformKernels {
  // Scales and zeros, [uniform_groups] each, of n_pages pages that lie one after another; a group
  // extends over all of them. scratch: uniform_scratch_floats.
  void (*measure)(const UniformShape& shape, const float* pages, int64_t n_pages, uint16_t* scales, uint16_t* zeros,
                  float* scratch);
  void (*encode)(const UniformShape& shape, const float* page, const uint16_t* scales, const uint16_t* zeros,
                 uint8_t* codes, float* scratch);
  void (*decode)(const UniformShape& shape, const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                 float* page, float* scratch);
  // page <- page H / sqrt(n), H the Hadamard matrix of n = n_cols (by_row) or n_rows, a power of two:
  // a rotation that undoes itself. ld: floats from row to row.
  void (*hadamard)(float* page, int64_t n_rows, int64_t n_cols, int64_t ld, bool by_row);
  // Rotate a page of keys [k_dim][64], or turn them back. cos, sin: [64][k_dim / 2] of its tokens.
  void (*rotate)(float* page, int64_t k_dim, const float* cos, const float* sin, RopeStyle style, bool back);
};

}  // namespace capax
