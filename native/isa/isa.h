// The virtual machine every kernel is written for: 16 float lanes, explicit FMA.
//
// A kernel is a template over one of these tags and never over a register width:
//
//   struct Isa {
//     struct F;                    // 16 x float32
//     struct I;                    // 16 x int32
//     ...the static functions below...
//   };
//
// Each tag implements the same IEEE operations in the same order, so a kernel written
// once gives the same bits with `Scalar`, `Avx2`, `Avx512` and `Neon`:
//   * fma(a, b, c) rounds once everywhere (never mul followed by add);
//   * hsum adds lanes in one fixed tree: i + (i+8), i + (i+4), i + (i+2), i + (i+1);
//   * max(a, b) is `a > b ? a : b`, so an unordered pair yields b;
//   * to_i32 rounds to nearest even, as the default floating-point environment does.
// The translation unit that includes a tag is compiled with that tag's flags and
// -ffp-contract=off. Everything here is `static inline` inside an unnamed namespace:
// no symbol may be emitted twice with different flags (tools/check_symbols.py).
//
// Functions of a tag (p: unaligned pointers; n: 0..16 valid lanes):
//   F zero()            F set1(float)         F load(const float* p)    void store(float* p, F)
//   F load_n(const float* p, int n, float fill)                         void store_n(float* p, F, int n)
//   F load_f16(const uint16_t* p)             F load_bf16(const uint16_t* p)
//   F load_i8(const int8_t* p)                void store_f16(uint16_t* p, F)
//   F add sub mul div max min (F, F)          F fma(F a, F b, F c) = a*b + c
//   F fnma(a, b, c) = c - a*b                 F sqrt(F)     F round(F)  nearest even
//   F lt_select(a, b, x, y) = a < b ? x : y   F abs(F)
//   F exp2i(F n): 2^n for integral n in [-126, 127]
//   F from_i32(I)       I to_i32(F)           void store_i8(int8_t* p, I)  saturating not needed
//   I iload_u8(const uint8_t* p)  16 bytes    I ishr<n>(I) ishl(I, int n) iand ior(I, I)  bits, n in 0..31
//   I izero() iset1(int32_t) iadd imul(I, I)  I iload(const int32_t* p)  void istore(int32_t*, I)
//   float hsum(F)       float hmax(F)
#pragma once

#include <stdint.h>
#include <string.h>

// For tiles that must keep their accumulators in registers. Under a sanitizer every access is
// instrumented, and inlining tiles into one another would take the compiler a quarter of an hour.
#if defined(__SANITIZE_ADDRESS__)
#define CAPAX_ALWAYS_INLINE
#else
#define CAPAX_ALWAYS_INLINE __attribute__((always_inline))
#endif

namespace {

// Half-precision conversion in integer arithmetic, for scalars and for the tag without
// hardware conversion. Exact for every finite value, keeps infinities and quiet NaNs.
static inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1fu;
  uint32_t mantissa = h & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1fu) {
    bits = sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {  // subnormal half: normalise
    int shift = 0;
    while (!(mantissa & 0x400u)) {
      mantissa <<= 1;
      ++shift;
    }
    bits = sign | ((113u - static_cast<uint32_t>(shift)) << 23) | ((mantissa & 0x3ffu) << 13);
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; overflow to infinity; NaN stays a quiet NaN.
static inline uint16_t f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // result is subnormal or zero
    if (magnitude < 0x33000000u) return sign;
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126u - exponent;  // 14..24
    const uint32_t half = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1u);
    const uint32_t tie = 1u << (shift - 1u);
    return static_cast<uint16_t>(sign | (half + ((rest > tie || (rest == tie && (half & 1u))) ? 1u : 0u)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

static inline float bf16_to_f32(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
