#include <math.h>

#include "isa/isa.h"
#include "quants/quantize_k.h"
#include "quants/quants.h"

namespace capax {

namespace {

void put16(uint8_t* p, uint16_t v) { memcpy(p, &v, 2); }

// min(trunc(v), most) for v >= 0; NaN gives 0.
uint8_t clamp_quant(float v, int most) {
  if (!(v > 0.0f)) return 0;
  return v >= static_cast<float>(most) ? static_cast<uint8_t>(most) : static_cast<uint8_t>(v);
}

// The weight of largest magnitude, the first of equals, sign kept.
float extreme(const float* x) {
  float best = x[0];
  for (int i = 1; i < 32; ++i)
    if (fabsf(x[i]) > fabsf(best)) best = x[i];
  return best;
}

void put_nibbles(const uint8_t* q, uint8_t* out) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4);
}

void put_high_bits(const uint8_t* q, uint8_t* out) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(q[i] >> 4) << i;
  memcpy(out, &bits, 4);
}

// Q4_0, Q5_0: the extreme weight falls on quant 0; the opposite sign has one step less.
template <int Bits>
void quantize_symmetric(const float* x, uint8_t* out) {
  constexpr int zero = 1 << (Bits - 1);
  const float d = extreme(x) / static_cast<float>(-zero);
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  uint8_t q[32];
  for (int i = 0; i < 32; ++i) q[i] = clamp_quant(x[i] * inverse + (static_cast<float>(zero) + 0.5f), 2 * zero - 1);
  put16(out, f32_to_f16(d));
  if (Bits == 5) put_high_bits(q, out + 2);
  put_nibbles(q, out + (Bits == 5 ? 6 : 2));
}

// Q4_1, Q5_1: an even grid from the least to the greatest weight.
template <int Bits>
void quantize_min(const float* x, uint8_t* out) {
  constexpr int most = (1 << Bits) - 1;
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float d = (high - low) / static_cast<float>(most);
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  uint8_t q[32];
  for (int i = 0; i < 32; ++i) q[i] = clamp_quant((x[i] - low) * inverse + 0.5f, most);
  put16(out, f32_to_f16(d));
  put16(out + 2, f32_to_f16(low));
  if (Bits == 5) put_high_bits(q, out + 4);
  put_nibbles(q, out + (Bits == 5 ? 8 : 4));
}

void quantize_q8_0(const float* x, uint8_t* out) {
  const float d = fabsf(extreme(x)) / 127.0f;
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  put16(out, f32_to_f16(d));
  for (int i = 0; i < 32; ++i) out[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(roundf(x[i] * inverse)));
}

}  // namespace

bool can_quantize(Encoding encoding) {
  switch (encoding) {
    case Encoding::F32:
    case Encoding::F16:
    case Encoding::BF16:
    case Encoding::Q8_0:
    case Encoding::Q4_0:
    case Encoding::Q4_1:
    case Encoding::Q5_0:
    case Encoding::Q5_1:
    case Encoding::Q4_K:
    case Encoding::Q6_K: return true;
    default: return false;
  }
}

void quantize(Encoding encoding, const float* weights, int64_t n, uint8_t* out) {
  const EncodingInfo& info = encoding_info(encoding);
  for (int64_t i = 0; i < n; i += info.block_size, out += info.block_nbytes) {
    const float* x = weights + i;
    switch (encoding) {
      case Encoding::F32: memcpy(out, x, 4); break;
      case Encoding::F16: put16(out, f32_to_f16(*x)); break;
      case Encoding::BF16: put16(out, f32_to_bf16(*x)); break;
      case Encoding::Q8_0: quantize_q8_0(x, out); break;
      case Encoding::Q4_0: quantize_symmetric<4>(x, out); break;
      case Encoding::Q5_0: quantize_symmetric<5>(x, out); break;
      case Encoding::Q4_1: quantize_min<4>(x, out); break;
      case Encoding::Q5_1: quantize_min<5>(x, out); break;
      case Encoding::Q4_K: quantize_q4_k(x, out); break;
      case Encoding::Q6_K: quantize_q6_k(x, out); break;
      default: break;
    }
  }
}

}  // namespace capax
