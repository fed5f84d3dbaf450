// Linear maps y[t, o] = sum_i x[t, i] * w[o, i] over packed weights.
//
// Weights are packed into groups of 16 output rows (matmul/formats.h draws the layout), so
// that one load feeds 16 accumulators.
//
// Rounding contract: y[t, o] is a function of x[t, :] and w[o, :] alone. There is one float
// accumulator per output; it starts at +0 and takes, block after block in ascending order,
//   acc = fma(float(dot), dw * dx, acc)         dot: exact int32 dot product of 32 inputs
//   acc = fma(m, dx * sum(q), acc)              only for encodings with a minimum
// and is finally stored, or added to y once. Float encodings take acc = fma(w, x, acc) input
// after input. Batch size, tiling, thread count, residency and instruction set cannot change
// a bit. A token with a NaN or infinite input in a block gets NaN in every output.
#pragma once

#include <stdint.h>

#include "quants/encoding.h"

namespace capax {

// Activations quantised to int8 in blocks of 32 inputs: x ~= d * q, d = max|x| / 127.
// Tokens stand in tiles of 16; the last tile is as wide as there are tokens left. With w the
// width of the tile that starts at token t0, and token t of it, block b:
//   q:   tile at t0 * n_in,          row  (b * w + t) * 32
//   d, s, n32: tile at t0 * n_blocks, entry b * w + t
//   n16: tile at 2 * t0 * n_blocks,   entry 2 * (b * w + t) + half
// so one token alone is an ordinary row, and a kernel walks a tile with one pointer.
struct Q8Rows {
  int8_t* q;
  float* d;      // NaN when the block holds a non-finite input (then q = 0)
  float* s;      // d * sum(q), for encodings with a minimum
  int32_t* n32;  // -sum(q), for encodings with a zero point
  int32_t* n16;  // -sum(q) per 16 inputs, for encodings with 16-wide sub-blocks
};

constexpr int64_t kTokenTile = 16;

// Bytes of the buffer that `q8_rows_at` lays Q8Rows into; the buffer is 64-byte aligned.
constexpr int64_t q8_rows_nbytes(int64_t n_tokens, int64_t n_in) {
  const auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  const int64_t blocks = n_tokens * (n_in / 32);
  return up(blocks * 32) + 3 * up(blocks * 4) + up(blocks * 8);
}

inline Q8Rows q8_rows_at(uint8_t* buffer, int64_t n_tokens, int64_t n_in) {
  const auto up = [](int64_t n) { return (n + 63) / 64 * 64; };
  const int64_t blocks = n_tokens * (n_in / 32);
  Q8Rows rows;
  rows.q = reinterpret_cast<int8_t*>(buffer);
  buffer += up(blocks * 32);
  rows.d = reinterpret_cast<float*>(buffer);
  buffer += up(blocks * 4);
  rows.s = reinterpret_cast<float*>(buffer);
  buffer += up(blocks * 4);
  rows.n32 = reinterpret_cast<int32_t*>(buffer);
  buffer += up(blocks * 4);
  rows.n16 = reinterpret_cast<int32_t*>(buffer);
  return rows;
}

// The rows from `token` on, which begins a tile.
inline Q8Rows q8_rows_from(const Q8Rows& rows, int64_t token, int64_t n_in) {
  const int64_t entry = token * (n_in / 32);
  return {rows.q + 32 * entry, rows.d + entry, rows.s + entry, rows.n32 + entry, rows.n16 + 2 * entry};
}

struct MatmulArgs {
  const uint8_t* groups;           // packed groups; groups[0] is group `group_begin`
  int64_t group_begin, group_end;  // this call's share, in groups of 16 output rows
  int64_t n_in, n_out;
  Q8Rows x;         // integer encodings
  const float* xf;  // float encodings: [n_tokens, n_in] with row stride ldx
  int64_t ldx;
  int64_t n_tokens;
  float* y;  // [n_tokens, n_out] with row stride ldy
  int64_t ldy;
  bool accumulate;  // y += instead of y =
};

using MatmulFn = void (*)(const MatmulArgs&);

struct MatmulKernels {
  // Quantise tokens [t_begin, t_end) of x: [n_tokens, n_in] float32 with row stride ldx,
  // n_in % 32 == 0. Threads may share the work by token.
  void (*quantize_rows)(const float* x, int64_t ldx, int64_t n_tokens, int64_t n_in, int64_t t_begin,
                        int64_t t_end, Q8Rows out);
  MatmulFn f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k;

  MatmulFn of(Encoding encoding) const {
    switch (encoding) {
      case Encoding::F32: return f32;
      case Encoding::F16: return f16;
      case Encoding::BF16: return bf16;
      case Encoding::Q8_0: return q8_0;
      case Encoding::Q4_0: return q4_0;
      case Encoding::Q4_1: return q4_1;
      case Encoding::Q5_0: return q5_0;
      case Encoding::Q5_1: return q5_1;
      case Encoding::Q2_K: return q2_k;
      case Encoding::Q3_K: return q3_k;
      case Encoding::Q4_K: return q4_k;
      case Encoding::Q5_K: return q5_k;
      case Encoding::Q6_K: return q6_k;
    }
    return nullptr;
  }
};

}  // namespace capax
