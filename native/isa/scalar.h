// The 16-lane machine in plain C: the specification the other tags are tested against.
#pragma once

#include <math.h>

#include "isa/isa.h"

namespace {

struct Scalar {
  static constexpr const char* name = "scalar";
  struct F {
    float v[16];
  };
  struct I {
    int32_t v[16];
  };

#define CAPAX_LANES for (int i = 0; i < 16; ++i)
  static inline F zero() { return set1(0.0f); }
  static inline F set1(float x) {
    F r;
    CAPAX_LANES r.v[i] = x;
    return r;
  }
  static inline F load(const float* p) {
    F r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static inline void store(float* p, F a) { memcpy(p, a.v, sizeof a.v); }
  static inline F load_n(const float* p, int n, float fill) {
    F r = set1(fill);
    memcpy(r.v, p, static_cast<size_t>(n) * sizeof(float));
    return r;
  }
  static inline void store_n(float* p, F a, int n) { memcpy(p, a.v, static_cast<size_t>(n) * sizeof(float)); }
  static inline F load_f16(const uint16_t* p) {
    F r;
    CAPAX_LANES r.v[i] = f16_to_f32(p[i]);
    return r;
  }
  static inline F load_bf16(const uint16_t* p) {
    F r;
    CAPAX_LANES r.v[i] = bf16_to_f32(p[i]);
    return r;
  }
  static inline F load_i8(const int8_t* p) {
    F r;
    CAPAX_LANES r.v[i] = static_cast<float>(p[i]);
    return r;
  }
  static inline void store_f16(uint16_t* p, F a) { CAPAX_LANES p[i] = f32_to_f16(a.v[i]); }
  static inline F add(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] + b.v[i];
    return a;
  }
  static inline F sub(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] - b.v[i];
    return a;
  }
  static inline F mul(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] * b.v[i];
    return a;
  }
  static inline F div(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] / b.v[i];
    return a;
  }
  static inline F max(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static inline F min(F a, F b) {
    CAPAX_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static inline F fma(F a, F b, F c) {
    CAPAX_LANES c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
  }
  static inline F fnma(F a, F b, F c) {
    CAPAX_LANES c.v[i] = __builtin_fmaf(-a.v[i], b.v[i], c.v[i]);
    return c;
  }
  static inline F sqrt(F a) {
    CAPAX_LANES a.v[i] = sqrtf(a.v[i]);
    return a;
  }
  static inline F abs(F a) {
    CAPAX_LANES a.v[i] = fabsf(a.v[i]);
    return a;
  }
  static inline F round(F a) {
    CAPAX_LANES a.v[i] = nearbyintf(a.v[i]);
    return a;
  }
  static inline F lt_select(F a, F b, F x, F y) {
    CAPAX_LANES x.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i];
    return x;
  }
  static inline F exp2i(F n) {
    F r;
    CAPAX_LANES {
      const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
      memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  static inline I izero() { return iset1(0); }
  static inline I iset1(int32_t x) {
    I r;
    CAPAX_LANES r.v[i] = x;
    return r;
  }
  static inline I iload(const int32_t* p) {
    I r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static inline void istore(int32_t* p, I a) { memcpy(p, a.v, sizeof a.v); }
  // Integers wrap, as they do in vector registers.
  static inline I iadd(I a, I b) {
    CAPAX_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static inline I imul(I a, I b) {
    CAPAX_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static inline I iload_u8(const uint8_t* p) {
    I r;
    CAPAX_LANES r.v[i] = p[i];
    return r;
  }
  template <int n>
  static inline I ishr(I a) {
    CAPAX_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n);
    return a;
  }
  static inline I ishl(I a, int n) {
    CAPAX_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n);
    return a;
  }
  static inline I iand(I a, I b) {
    CAPAX_LANES a.v[i] &= b.v[i];
    return a;
  }
  static inline I ior(I a, I b) {
    CAPAX_LANES a.v[i] |= b.v[i];
    return a;
  }
  static inline F from_i32(I a) {
    F r;
    CAPAX_LANES r.v[i] = static_cast<float>(a.v[i]);
    return r;
  }
  static inline I to_i32(F a) {
    I r;
    CAPAX_LANES r.v[i] = static_cast<int32_t>(lrintf(a.v[i]));
    return r;
  }
  static inline void store_i8(int8_t* p, I a) { CAPAX_LANES p[i] = static_cast<int8_t>(a.v[i]); }
  static inline float hsum(F a) {
    for (int half = 8; half > 0; half >>= 1)
      for (int i = 0; i < half; ++i) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
  }
  static inline float hmax(F a) {
    for (int half = 8; half > 0; half >>= 1)
      for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
  }
#undef CAPAX_LANES
};

}  // namespace
