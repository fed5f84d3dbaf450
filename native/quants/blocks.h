// The blocks of GGUF encodings, byte by byte, and one common view of them.
//
// `read_block<Fmt>` turns 32 weights of a row into a `BlockView`; packing, dequantising and
// reading single rows all go through it, so each file layout is written down once.
#pragma once

#include <stdint.h>
#include <string.h>

#include "matmul/formats.h"

namespace {

// 32 weights of one row. Weight i belongs to half h = i / 16 and is, each product rounded:
//   plain, no min:  d * (q - zero)          plain, min:  d * q + m
//   K, no min:      (d * scale[h]) * (q - zero)
//   K, min:         (d * scale[h]) * q - m * min[h]
struct BlockView {
  uint8_t q[32];     // with the zero point added: never negative
  uint16_t d, m;     // f16 bits
  int8_t scale[2];   // K formats
  uint8_t min[2];    // K formats with a minimum
};

static inline uint16_t read_u16(const uint8_t* p) {
  uint16_t v;
  memcpy(&v, p, 2);
  return v;
}

// Low nibbles are inputs 0..15, high nibbles inputs 16..31.
static inline void read_nibbles(const uint8_t* p, uint8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = p[i] & 15;
    q[i + 16] = p[i] >> 4;
  }
}

// 6-bit scales and minimums of Q4_K and Q5_K, eight of each in 12 bytes.
static inline void read_scale_min(const uint8_t* p, int i, BlockView& view) {
  int scale, min;
  if (i < 4) {
    scale = p[i] & 63;
    min = p[i + 4] & 63;
  } else {
    scale = (p[i + 4] & 15) | (p[i - 4] >> 6 << 4);
    min = (p[i + 4] >> 4) | (p[i] >> 6 << 4);
  }
  view.scale[0] = view.scale[1] = static_cast<int8_t>(scale);
  view.min[0] = view.min[1] = static_cast<uint8_t>(min);
}

// Block b (of 32) of the row that starts at `row`.
template <class Fmt>
static inline void read_block(const uint8_t* row, int64_t b, BlockView& view) {
  using E = capax::Encoding;
  if constexpr (Fmt::encoding == E::Q4_0) {  // | d | 16 |
    const uint8_t* p = row + 18 * b;
    view.d = read_u16(p);
    read_nibbles(p + 2, view.q);
  } else if constexpr (Fmt::encoding == E::Q4_1) {  // | d | m | 16 |
    const uint8_t* p = row + 20 * b;
    view.d = read_u16(p);
    view.m = read_u16(p + 2);
    read_nibbles(p + 4, view.q);
  } else if constexpr (Fmt::encoding == E::Q5_0 || Fmt::encoding == E::Q5_1) {  // | d | (m) | high bits 4 | 16 |
    const uint8_t* p = row + (Fmt::has_min ? 24 : 22) * b;
    view.d = read_u16(p);
    if (Fmt::has_min) view.m = read_u16(p + 2);
    p += Fmt::has_min ? 4 : 2;
    uint32_t high;
    memcpy(&high, p, 4);
    read_nibbles(p + 4, view.q);
    for (int i = 0; i < 32; ++i) view.q[i] |= static_cast<uint8_t>((high >> i & 1) << 4);
  } else if constexpr (Fmt::encoding == E::Q8_0) {  // | d | 32 |
    const uint8_t* p = row + 34 * b;
    view.d = read_u16(p);
    for (int i = 0; i < 32; ++i) view.q[i] = p[2 + i] ^ 0x80;
  } else if constexpr (Fmt::encoding == E::Q2_K) {  // | scale + 16 min: 16 | 64 | d | dmin |
    const uint8_t* p = row + 84 * (b / 8);
    const int i = static_cast<int>(b % 8);
    for (int h = 0; h < 2; ++h) {
      view.scale[h] = static_cast<int8_t>(p[2 * i + h] & 15);
      view.min[h] = p[2 * i + h] >> 4;
    }
    for (int j = 0; j < 32; ++j) view.q[j] = p[16 + 32 * (i / 4) + j] >> (2 * (i % 4)) & 3;
    view.d = read_u16(p + 80);
    view.m = read_u16(p + 82);
  } else if constexpr (Fmt::encoding == E::Q3_K) {  // | high bits 32 | 64 | scales 12 | d |
    const uint8_t* p = row + 110 * (b / 8);
    const int i = static_cast<int>(b % 8);
    for (int j = 0; j < 32; ++j) {
      const int low = p[32 + 32 * (i / 4) + j] >> (2 * (i % 4)) & 3;
      view.q[j] = static_cast<uint8_t>(low | (p[j] >> i & 1) << 2);
    }
    const uint8_t* scales = p + 96;
    for (int h = 0; h < 2; ++h) {
      const int k = 2 * i + h;
      const int low = k < 8 ? scales[k] & 15 : scales[k - 8] >> 4;
      view.scale[h] = static_cast<int8_t>((low | (scales[8 + k % 4] >> (2 * (k / 4)) & 3) << 4) - 32);
    }
    view.d = read_u16(p + 108);
  } else if constexpr (Fmt::encoding == E::Q4_K) {  // | d | dmin | scales 12 | 128 |
    const uint8_t* p = row + 144 * (b / 8);
    const int i = static_cast<int>(b % 8);
    view.d = read_u16(p);
    view.m = read_u16(p + 2);
    read_scale_min(p + 4, i, view);
    for (int j = 0; j < 32; ++j) view.q[j] = p[16 + 32 * (i / 2) + j] >> (4 * (i % 2)) & 15;
  } else if constexpr (Fmt::encoding == E::Q5_K) {  // | d | dmin | scales 12 | high bits 32 | 128 |
    const uint8_t* p = row + 176 * (b / 8);
    const int i = static_cast<int>(b % 8);
    view.d = read_u16(p);
    view.m = read_u16(p + 2);
    read_scale_min(p + 4, i, view);
    for (int j = 0; j < 32; ++j) {
      const int low = p[48 + 32 * (i / 2) + j] >> (4 * (i % 2)) & 15;
      view.q[j] = static_cast<uint8_t>(low | (p[16 + j] >> i & 1) << 4);
    }
  } else {  // Q6_K: | low 128 | high 64 | scales 16 | d |
    const uint8_t* p = row + 210 * (b / 8);
    const int i = static_cast<int>(b % 8);
    for (int j = 0; j < 32; ++j) {
      const int low = p[64 * (i / 4) + 32 * (i % 2) + j] >> (4 * (i / 2 % 2)) & 15;
      view.q[j] = static_cast<uint8_t>(low | (p[128 + 32 * (i / 4) + j] >> (2 * (i % 4)) & 3) << 4);
    }
    for (int h = 0; h < 2; ++h) view.scale[h] = static_cast<int8_t>(p[192 + 2 * i + h]);
    view.d = read_u16(p + 208);
  }
}

// Calls f(Fmt{}) with the format of an integer encoding.
template <class Function>
static inline void with_format(capax::Encoding encoding, Function&& f) {
  switch (encoding) {
    case capax::Encoding::Q4_0: f(FormatQ4_0{}); break;
    case capax::Encoding::Q4_1: f(FormatQ4_1{}); break;
    case capax::Encoding::Q5_0: f(FormatQ5_0{}); break;
    case capax::Encoding::Q5_1: f(FormatQ5_1{}); break;
    case capax::Encoding::Q8_0: f(FormatQ8_0{}); break;
    case capax::Encoding::Q2_K: f(FormatQ2_K{}); break;
    case capax::Encoding::Q3_K: f(FormatQ3_K{}); break;
    case capax::Encoding::Q4_K: f(FormatQ4_K{}); break;
    case capax::Encoding::Q5_K: f(FormatQ5_K{}); break;
    case capax::Encoding::Q6_K: f(FormatQ6_K{}); break;
    default: break;
  }
}

}  // namespace
