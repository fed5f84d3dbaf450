// The packed layout of integer encodings: what kernels read and `pack.cpp` writes.
//
// One group holds 16 output rows x all inputs. Per block of 32 inputs its quants stand as 8
// byte vectors of 64 lanes; lane 4*r + j of vector v is input 4*v + j of row r, so one
// four-byte dot product instruction advances 16 rows by 4 inputs:
//
//   vector v:  | row 0: inputs 4v..4v+3 | row 1: inputs 4v..4v+3 | ... | row 15 |   64 bytes
//
// A quant is stored without sign (zero point added) and cut into bit planes:
//   4 low bits: 4 vectors; byte of vector k = vector k | vector k+4 << 4                256 bytes
//   next 2 bits: 2 vectors; byte of plane j = sum of vector 4j+i << 2i, i = 0..3        128 bytes
//   next 1 bit:  1 vector;  byte = sum of vector v << v, v = 0..7                        64 bytes
//   8 bits: 8 vectors as they are                                                       512 bytes
// 2 = (2), 3 = (2, 1), 4 = (4), 5 = (4, 1), 6 = (4, 2), 8 = (8).
//
// Plain formats, one block:   | d f16[16] | m f16[16] if any | planes |
//   Q4_1: 32 + 32 + 256 = 320 bytes for 512 weights; nothing is added to the file's bytes.
// K formats, one super-block of 256 inputs:
//   | d f16[16] | dmin f16[16] if any | 8 x block |
//   block of Q4_K, Q5_K:  | scale u8[16] | min u8[16] | planes |
//   block of Q2_K:        | scale + 16*min u8[16] of inputs 0..15 | of 16..31 | planes |
//   block of Q3_K, Q6_K:  | scale i8[16] of inputs 0..15 | of inputs 16..31 | planes |
#pragma once

#include <stdint.h>

#include "quants/encoding.h"

namespace {

// bits: of a quant; zero: the zero point, 0 or a power of two; has_min: w = scale*q - or + min;
// is_k: super-blocks of 256; sub16: scales per 16 inputs instead of per 32.
template <capax::Encoding E, int Bits, int Zero, bool HasMin, bool IsK, bool Sub16>
struct Format {
  static constexpr capax::Encoding encoding = E;
  static constexpr int bits = Bits, zero = Zero;
  static constexpr bool has_min = HasMin, is_k = IsK, sub16 = Sub16;
  static constexpr int zero_shift = Zero == 0 ? 0 : __builtin_ctz(Zero == 0 ? 1 : Zero);
  static constexpr int64_t planes_nbytes = Bits * 64;  // 32 inputs x 16 rows x Bits / 8
  static constexpr int64_t floats_nbytes = HasMin ? 64 : 32;
  static constexpr int64_t block_nbytes = planes_nbytes + (IsK ? 32 : floats_nbytes);
  static constexpr int64_t head_nbytes = IsK ? floats_nbytes : 0;  // in front of 8 blocks
  static constexpr int64_t block_inputs = IsK ? 256 : 32;
  static constexpr int64_t group_nbytes(int64_t n_in) {
    return IsK ? n_in / 256 * (head_nbytes + 8 * block_nbytes) : n_in / 32 * block_nbytes;
  }
  // Offset of 32-block b in its group, and of the head of its super-block.
  static constexpr int64_t block_at(int64_t b) {
    return IsK ? head_at(b) + head_nbytes + b % 8 * block_nbytes : b * block_nbytes;
  }
  static constexpr int64_t head_at(int64_t b) { return b / 8 * (head_nbytes + 8 * block_nbytes); }
};

using FormatQ4_0 = Format<capax::Encoding::Q4_0, 4, 8, false, false, false>;
using FormatQ4_1 = Format<capax::Encoding::Q4_1, 4, 0, true, false, false>;
using FormatQ5_0 = Format<capax::Encoding::Q5_0, 5, 16, false, false, false>;
using FormatQ5_1 = Format<capax::Encoding::Q5_1, 5, 0, true, false, false>;
using FormatQ8_0 = Format<capax::Encoding::Q8_0, 8, 128, false, false, false>;
using FormatQ2_K = Format<capax::Encoding::Q2_K, 2, 0, true, true, true>;
using FormatQ3_K = Format<capax::Encoding::Q3_K, 3, 4, false, true, true>;
using FormatQ4_K = Format<capax::Encoding::Q4_K, 4, 0, true, true, false>;
using FormatQ5_K = Format<capax::Encoding::Q5_K, 5, 0, true, true, false>;
using FormatQ6_K = Format<capax::Encoding::Q6_K, 6, 32, false, true, true>;

}  // namespace
