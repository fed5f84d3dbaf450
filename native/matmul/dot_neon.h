// Block dot products on NEON: one signed dot product instruction advances 4 rows by 4 inputs,
// the inputs chosen by lane. Quants below 8 bits are the same number signed or not.
#pragma once

#include "isa/neon.h"
#include "matmul/dot.h"

namespace {

template <>
struct Dot<Neon> {
  using I = Neon::I;
  static constexpr int max_tokens = 4, step = 4;
  static constexpr bool sums_in_registers = true;
  struct Block {
    int8x16_t v[8][4];  // [vector][rows 4k .. 4k+3]
  };

  template <class Fmt>
  static inline void unpack(const uint8_t* planes, Block& w) {
    for (int k = 0; k < 4; ++k) {
      const uint8_t* p = planes + 16 * k;
      uint8x16_t q[8];
      if constexpr (Fmt::bits == 8) {  // kept signed, the zero point is 128
        for (int v = 0; v < 8; ++v) q[v] = veorq_u8(vld1q_u8(p + 64 * v), vdupq_n_u8(0x80));
      }
      if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
        for (int v = 0; v < 4; ++v) {
          const uint8x16_t both = vld1q_u8(p + 64 * v);
          q[v] = vandq_u8(both, vdupq_n_u8(15));
          q[v + 4] = vshrq_n_u8(both, 4);
        }
        p += 256;
      }
      if constexpr (Fmt::bits == 6 || Fmt::bits == 2 || Fmt::bits == 3) {
        for (int j = 0; j < 2; ++j) {
          const uint8x16_t plane = vld1q_u8(p + 64 * j);
          for (int i = 0; i < 4; ++i) {
            const uint8x16_t two = vandq_u8(vshlq_u8(plane, vdupq_n_s8(static_cast<int8_t>(-2 * i))), vdupq_n_u8(3));
            q[4 * j + i] = Fmt::bits == 6 ? vorrq_u8(q[4 * j + i], vshlq_n_u8(two, 4)) : two;
          }
        }
        p += 128;
      }
      if constexpr (Fmt::bits == 5 || Fmt::bits == 3) {
        const uint8x16_t plane = vld1q_u8(p);
        for (int v = 0; v < 8; ++v) {
          const uint8x16_t one = vandq_u8(vshlq_u8(plane, vdupq_n_s8(static_cast<int8_t>(-v))), vdupq_n_u8(1));
          q[v] = vorrq_u8(q[v], Fmt::bits == 5 ? vshlq_n_u8(one, 4) : vshlq_n_u8(one, 2));
        }
      }
      for (int v = 0; v < 8; ++v) w.v[v][k] = vreinterpretq_s8_u8(q[v]);
    }
  }
  // Adds vectors v0 .. v0+3 with the 16 inputs x.
  static inline void add_half(const Block& w, int v0, int8x16_t x, I& sum) {
    for (int k = 0; k < 4; ++k) {
      sum.v[k] = vdotq_laneq_s32(sum.v[k], w.v[v0][k], x, 0);
      sum.v[k] = vdotq_laneq_s32(sum.v[k], w.v[v0 + 1][k], x, 1);
      sum.v[k] = vdotq_laneq_s32(sum.v[k], w.v[v0 + 2][k], x, 2);
      sum.v[k] = vdotq_laneq_s32(sum.v[k], w.v[v0 + 3][k], x, 3);
    }
  }
  template <class Fmt>
  static inline I start(int32_t minus_sum) {
    return Neon::iset1(Fmt::bits == 8 ? 0 : minus_sum * Fmt::zero);
  }
  template <class Fmt, int N>
  static inline void dot32(const Block& w, const int8_t* x, const int32_t* n32, I* out) {
    for (int n = 0; n < N; ++n) {
      out[n] = start<Fmt>(n32[n]);
      add_half(w, 0, vld1q_s8(x + 32 * n), out[n]);
      add_half(w, 4, vld1q_s8(x + 32 * n + 16), out[n]);
    }
  }
  template <class Fmt, int N>
  static inline void dot16(const Block& w, const int8_t* x, const int32_t* n16, I* lo, I* hi) {
    for (int n = 0; n < N; ++n) {
      lo[n] = start<Fmt>(n16[2 * n]);
      hi[n] = start<Fmt>(n16[2 * n + 1]);
      add_half(w, 0, vld1q_s8(x + 32 * n), lo[n]);
      add_half(w, 4, vld1q_s8(x + 32 * n + 16), hi[n]);
    }
  }
  static inline I widen(uint8x16_t bytes) {
    const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_u8(vget_high_u8(bytes));
    I r;
    r.v[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo)));
    r.v[1] = vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(lo)));
    r.v[2] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi)));
    r.v[3] = vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(hi)));
    return r;
  }
  static inline I low4(const uint8_t* p) { return widen(vandq_u8(vld1q_u8(p), vdupq_n_u8(15))); }
  static inline I high4(const uint8_t* p) { return widen(vshrq_n_u8(vld1q_u8(p), 4)); }
};

}  // namespace
