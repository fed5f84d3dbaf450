// The 16-lane machine on four NEON registers. Needs Armv8.2 with dot products and half floats.
#pragma once

#include <arm_neon.h>

#include "isa/isa.h"

namespace {

struct Neon {
  static constexpr const char* name = "neon";
  struct F {
    float32x4_t v[4];
  };
  struct I {
    int32x4_t v[4];
  };

#define CAPAX_QUARTERS for (int k = 0; k < 4; ++k)
  static inline F zero() { return set1(0.0f); }
  static inline F set1(float x) {
    F r;
    CAPAX_QUARTERS r.v[k] = vdupq_n_f32(x);
    return r;
  }
  static inline F load(const float* p) {
    F r;
    CAPAX_QUARTERS r.v[k] = vld1q_f32(p + 4 * k);
    return r;
  }
  static inline void store(float* p, F a) { CAPAX_QUARTERS vst1q_f32(p + 4 * k, a.v[k]); }
  static inline F load_n(const float* p, int n, float fill) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = i < n ? p[i] : fill;
    return load(lanes);
  }
  static inline void store_n(float* p, F a, int n) {
    float lanes[16];
    store(lanes, a);
    memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
  }
  static inline F load_f16(const uint16_t* p) {
    F r;
    CAPAX_QUARTERS r.v[k] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * k)));
    return r;
  }
  static inline F load_bf16(const uint16_t* p) {
    F r;
    CAPAX_QUARTERS r.v[k] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * k), 16));
    return r;
  }
  static inline F load_i8(const int8_t* p) {
    F r;
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_s8(vget_high_s8(bytes));
    r.v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo)));
    r.v[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(lo)));
    r.v[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi)));
    r.v[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(hi)));
    return r;
  }
  static inline void store_f16(uint16_t* p, F a) {
    CAPAX_QUARTERS vst1_u16(p + 4 * k, vreinterpret_u16_f16(vcvt_f16_f32(a.v[k])));
  }
  static inline F add(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vaddq_f32(a.v[k], b.v[k]);
    return a;
  }
  static inline F sub(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vsubq_f32(a.v[k], b.v[k]);
    return a;
  }
  static inline F mul(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vmulq_f32(a.v[k], b.v[k]);
    return a;
  }
  static inline F div(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vdivq_f32(a.v[k], b.v[k]);
    return a;
  }
  // vmaxq would return NaN for an unordered pair; here b is wanted.
  static inline F max(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vbslq_f32(vcgtq_f32(a.v[k], b.v[k]), a.v[k], b.v[k]);
    return a;
  }
  static inline F min(F a, F b) {
    CAPAX_QUARTERS a.v[k] = vbslq_f32(vcltq_f32(a.v[k], b.v[k]), a.v[k], b.v[k]);
    return a;
  }
  static inline F fma(F a, F b, F c) {
    CAPAX_QUARTERS c.v[k] = vfmaq_f32(c.v[k], a.v[k], b.v[k]);
    return c;
  }
  static inline F fnma(F a, F b, F c) {
    CAPAX_QUARTERS c.v[k] = vfmsq_f32(c.v[k], a.v[k], b.v[k]);
    return c;
  }
  static inline F sqrt(F a) {
    CAPAX_QUARTERS a.v[k] = vsqrtq_f32(a.v[k]);
    return a;
  }
  static inline F abs(F a) {
    CAPAX_QUARTERS a.v[k] = vabsq_f32(a.v[k]);
    return a;
  }
  static inline F round(F a) {
    CAPAX_QUARTERS a.v[k] = vrndnq_f32(a.v[k]);
    return a;
  }
  static inline F lt_select(F a, F b, F x, F y) {
    CAPAX_QUARTERS x.v[k] = vbslq_f32(vcltq_f32(a.v[k], b.v[k]), x.v[k], y.v[k]);
    return x;
  }
  static inline F exp2i(F n) {
    F r;
    CAPAX_QUARTERS {
      const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(n.v[k]), vdupq_n_s32(127));
      r.v[k] = vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    return r;
  }
  static inline I izero() { return iset1(0); }
  static inline I iset1(int32_t x) {
    I r;
    CAPAX_QUARTERS r.v[k] = vdupq_n_s32(x);
    return r;
  }
  static inline I iload(const int32_t* p) {
    I r;
    CAPAX_QUARTERS r.v[k] = vld1q_s32(p + 4 * k);
    return r;
  }
  static inline void istore(int32_t* p, I a) { CAPAX_QUARTERS vst1q_s32(p + 4 * k, a.v[k]); }
  static inline I iadd(I a, I b) {
    CAPAX_QUARTERS a.v[k] = vaddq_s32(a.v[k], b.v[k]);
    return a;
  }
  static inline I imul(I a, I b) {
    CAPAX_QUARTERS a.v[k] = vmulq_s32(a.v[k], b.v[k]);
    return a;
  }
  static inline I iload_u8(const uint8_t* p) {
    I r;
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_u8(vget_high_u8(bytes));
    r.v[0] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo)));
    r.v[1] = vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(lo)));
    r.v[2] = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi)));
    r.v[3] = vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(hi)));
    return r;
  }
  template <int n>
  static inline I ishr(I a) {
    if constexpr (n > 0)
      CAPAX_QUARTERS a.v[k] = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[k]), n));
    return a;
  }
  static inline I ishl(I a, int n) {
    CAPAX_QUARTERS a.v[k] = vshlq_s32(a.v[k], vdupq_n_s32(n));
    return a;
  }
  static inline I iand(I a, I b) {
    CAPAX_QUARTERS a.v[k] = vandq_s32(a.v[k], b.v[k]);
    return a;
  }
  static inline I ior(I a, I b) {
    CAPAX_QUARTERS a.v[k] = vorrq_s32(a.v[k], b.v[k]);
    return a;
  }
  static inline F from_i32(I a) {
    F r;
    CAPAX_QUARTERS r.v[k] = vcvtq_f32_s32(a.v[k]);
    return r;
  }
  static inline I to_i32(F a) {
    I r;
    CAPAX_QUARTERS r.v[k] = vcvtnq_s32_f32(a.v[k]);
    return r;
  }
  static inline void store_i8(int8_t* p, I a) {
    const int16x8_t lo = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
    const int16x8_t hi = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
  }
  static inline float hsum(F a) {
    const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static inline float hmax(F a) {
    const auto greater = [](float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); };
    float lanes[4];
    vst1q_f32(lanes, greater(greater(a.v[0], a.v[2]), greater(a.v[1], a.v[3])));
    const float x = lanes[0] > lanes[2] ? lanes[0] : lanes[2];
    const float y = lanes[1] > lanes[3] ? lanes[1] : lanes[3];
    return x > y ? x : y;
  }
#undef CAPAX_QUARTERS
};

}  // namespace
