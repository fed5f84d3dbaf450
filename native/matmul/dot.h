// Exact dot products of one packed block (32 inputs x 16 rows) with quantised activations:
// the plain C version, which states what the versions per instruction set must return.
//
//   Block                      the block's quants, unpacked
//   unpack<Fmt>(planes)        see matmul/formats.h
//   dot32<Fmt, N>(w, x, n32, out)      out[n] = sum_i (w_i - zero) * x[32n + i]        i = 0..31
//   dot16<Fmt, N>(w, x, n16, lo, hi)   the same over i = 0..15 and i = 16..31
//     x: N tokens of 32 int8 in [-127, 127]; n32[n] = -sum x, n16[2n + half] = -sum of a half
//   low4(p), high4(p)          low and high nibbles of 16 bytes, widened
#pragma once

#include "isa/isa.h"

namespace {

template <class Isa>
struct Dot {
  using I = typename Isa::I;
  static constexpr int max_tokens = 4;  // of the widest tile
  static constexpr int step = 4;        // tokens whose dot products run side by side
  static constexpr bool sums_in_registers = true;  // of all tokens of a tile, over its blocks
  struct Block {
    uint8_t v[8][64];
  };

  template <class Fmt>
  static inline void unpack(const uint8_t* planes, Block& w) {
    for (int v = 0; v < 8; ++v) {
      for (int lane = 0; lane < 64; ++lane) {
        const uint8_t* p = planes + lane;
        int quant = 0, shift = 0;
        if constexpr (Fmt::bits == 8) quant = p[64 * v];
        if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
          quant = p[64 * (v % 4)] >> (4 * (v / 4)) & 15;
          shift = 4;
          p += 256;
        }
        if constexpr (Fmt::bits == 6 || Fmt::bits == 2 || Fmt::bits == 3) {
          quant |= (p[64 * (v / 4)] >> (2 * (v % 4)) & 3) << shift;
          shift += 2;
          p += 128;
        }
        if constexpr (Fmt::bits == 5 || Fmt::bits == 3) quant |= (p[0] >> v & 1) << shift;
        w.v[v][lane] = static_cast<uint8_t>(quant);
      }
    }
  }
  template <class Fmt>
  static inline I part(const Block& w, int v0, int v1, const int8_t* x) {
    int32_t sum[16] = {};
    for (int v = v0; v < v1; ++v)
      for (int lane = 0; lane < 64; ++lane) sum[lane / 4] += (w.v[v][lane] - Fmt::zero) * x[4 * v + lane % 4];
    return Isa::iload(sum);
  }
  template <class Fmt, int N>
  static inline void dot32(const Block& w, const int8_t* x, const int32_t*, I* out) {
    for (int n = 0; n < N; ++n) out[n] = part<Fmt>(w, 0, 8, x + 32 * n);
  }
  template <class Fmt, int N>
  static inline void dot16(const Block& w, const int8_t* x, const int32_t*, I* lo, I* hi) {
    for (int n = 0; n < N; ++n) {
      lo[n] = part<Fmt>(w, 0, 4, x + 32 * n);
      hi[n] = part<Fmt>(w, 4, 8, x + 32 * n);
    }
  }
  static inline I low4(const uint8_t* p) {
    int32_t lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = p[i] & 15;
    return Isa::iload(lanes);
  }
  static inline I high4(const uint8_t* p) {
    int32_t lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = p[i] >> 4;
    return Isa::iload(lanes);
  }
};

}  // namespace
