// Three steps for every super-block:
//  1. each sub-block on its own: round with several trial scales, solve for the scale (and
//     minimum) of least squared error given the rounded quants, keep the best;
//  2. the super-block's f16 scale from the greatest of them, and integer scales near the rest:
//     the neighbours of the rounded integer are tried, because the quants can follow;
//  3. round the weights with what will be read back.
#include "quants/quantize_k.h"

#include <math.h>

#include "isa/isa.h"

namespace capax {

namespace {

void put16(uint8_t* p, uint16_t v) { memcpy(p, &v, 2); }

// Nearest integer to v (ties up) within 0..most; NaN gives 0.
inline int nearest(float v, int most) {
  v += 0.5f;
  if (!(v > 0.0f)) return 0;
  return v >= static_cast<float>(most) ? most : static_cast<int>(v);
}

// ---- Q4_K: w = scale * q - min, q in 0..15, min >= 0 ------------------------------------------

struct Affine {
  float scale, min, error;
};

float affine_error(const float* x, float scale, float min) {
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  float error = 0.0f;
  for (int i = 0; i < 32; ++i) {
    const float q = static_cast<float>(nearest((x[i] + min) * inverse, 15));
    const float miss = scale * q - min - x[i];
    error += miss * miss;
  }
  return error;
}

Affine fit_affine(const float* x) {
  float low = 0.0f, high = x[0], sum_x = 0.0f;  // min >= 0: the grid always reaches zero
  for (int i = 0; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    sum_x += x[i];
  }
  if (!(high > low)) return {0.0f, -low, 0.0f};
  Affine best = {(high - low) / 15.0f, -low, affine_error(x, (high - low) / 15.0f, -low)};
  for (int trial = -4; trial <= 10; ++trial) {  // finer grids first clip the extremes
    const float inverse = (15.0f + 0.25f * static_cast<float>(trial)) / (high - low);
    float sum_q = 0.0f, sum_qq = 0.0f, sum_qx = 0.0f;
    for (int i = 0; i < 32; ++i) {
      const float q = static_cast<float>(nearest((x[i] - low) * inverse, 15));
      sum_q += q, sum_qq += q * q, sum_qx += q * x[i];
    }
    const float determinant = 32.0f * sum_qq - sum_q * sum_q;
    if (!(determinant > 0.0f)) continue;
    float scale = (32.0f * sum_qx - sum_q * sum_x) / determinant;
    float min = (sum_q * sum_qx - sum_qq * sum_x) / determinant;
    if (min < 0.0f) {
      min = 0.0f;
      scale = sum_qx / sum_qq;
    }
    if (!(scale > 0.0f)) continue;
    const float error = affine_error(x, scale, min);
    if (error < best.error) best = {scale, min, error};
  }
  return best;
}

// ---- Q6_K: w = scale * (q - 32), q in 0..63 ----------------------------------------------------

float symmetric_error(const float* x, float scale) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  float error = 0.0f;
  for (int i = 0; i < 16; ++i) {
    const float q = static_cast<float>(nearest(x[i] * inverse + 32.0f, 63) - 32);
    const float miss = scale * q - x[i];
    error += miss * miss;
  }
  return error;
}

// The scale may be negative: the extreme weight then falls on -32, which has no opposite.
float fit_symmetric(const float* x) {
  float extreme = 0.0f;
  for (int i = 0; i < 16; ++i)
    if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
  if (extreme == 0.0f) return 0.0f;
  float best = extreme / -32.0f, best_error = symmetric_error(x, best);
  for (int trial = -9; trial <= 9; ++trial) {
    const float inverse = -(32.0f + 0.1f * static_cast<float>(trial)) / extreme;
    float sum_qq = 0.0f, sum_qx = 0.0f;
    for (int i = 0; i < 16; ++i) {
      const float q = static_cast<float>(nearest(x[i] * inverse + 32.0f, 63) - 32);
      sum_qq += q * q, sum_qx += q * x[i];
    }
    if (!(sum_qq > 0.0f)) continue;
    const float scale = sum_qx / sum_qq, error = symmetric_error(x, scale);
    if (error < best_error) best = scale, best_error = error;
  }
  return best;
}

}  // namespace

void quantize_q4_k(const float* x, uint8_t* out) {
  Affine fit[8];
  float most_scale = 0.0f, most_min = 0.0f;
  for (int b = 0; b < 8; ++b) {
    fit[b] = fit_affine(x + 32 * b);
    most_scale = fit[b].scale > most_scale ? fit[b].scale : most_scale;
    most_min = fit[b].min > most_min ? fit[b].min : most_min;
  }
  const uint16_t d16 = f32_to_f16(most_scale / 63.0f), m16 = f32_to_f16(most_min / 63.0f);
  const float d = f16_to_f32(d16), m = f16_to_f32(m16);
  uint8_t scales[8], mins[8], q[256];
  for (int b = 0; b < 8; ++b) {
    const int scale0 = nearest(d > 0.0f ? fit[b].scale / d : 0.0f, 63);
    const int min0 = nearest(m > 0.0f ? fit[b].min / m : 0.0f, 63);
    float least = INFINITY;
    scales[b] = static_cast<uint8_t>(scale0), mins[b] = static_cast<uint8_t>(min0);
    for (int scale = scale0 > 0 ? scale0 - 1 : 0; scale <= scale0 + 1 && scale < 64; ++scale) {
      for (int min = min0 > 0 ? min0 - 1 : 0; min <= min0 + 1 && min < 64; ++min) {
        const float error = affine_error(x + 32 * b, d * static_cast<float>(scale), m * static_cast<float>(min));
        if (error < least) {
          least = error;
          scales[b] = static_cast<uint8_t>(scale), mins[b] = static_cast<uint8_t>(min);
        }
      }
    }
    const float scale = d * scales[b], min = m * mins[b];
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int i = 0; i < 32; ++i) q[32 * b + i] = static_cast<uint8_t>(nearest((x[32 * b + i] + min) * inverse, 15));
  }
  put16(out, d16);
  put16(out + 2, m16);
  for (int b = 0; b < 4; ++b) {  // see `read_scale_min`
    out[4 + b] = static_cast<uint8_t>(scales[b] | scales[b + 4] >> 4 << 6);
    out[8 + b] = static_cast<uint8_t>(mins[b] | mins[b + 4] >> 4 << 6);
    out[12 + b] = static_cast<uint8_t>((scales[b + 4] & 15) | (mins[b + 4] & 15) << 4);
  }
  for (int b = 0; b < 8; b += 2)
    for (int i = 0; i < 32; ++i)
      out[16 + 16 * b + i] = static_cast<uint8_t>(q[32 * b + i] | q[32 * (b + 1) + i] << 4);
}

void quantize_q6_k(const float* x, uint8_t* out) {
  float fit[16], extreme = 0.0f;
  for (int b = 0; b < 16; ++b) {
    fit[b] = fit_symmetric(x + 16 * b);
    if (fabsf(fit[b]) > fabsf(extreme)) extreme = fit[b];
  }
  const uint16_t d16 = f32_to_f16(extreme / -128.0f);  // the greatest scale becomes -128
  const float d = f16_to_f32(d16);
  uint8_t q[256];
  for (int b = 0; b < 16; ++b) {
    const int scale0 = nearest((d != 0.0f ? fit[b] / d : 0.0f) + 128.0f, 255) - 128;
    int best = scale0;
    float least = INFINITY;
    for (int scale = scale0 > -128 ? scale0 - 1 : -128; scale <= scale0 + 1 && scale < 128; ++scale) {
      const float error = symmetric_error(x + 16 * b, d * static_cast<float>(scale));
      if (error < least) least = error, best = scale;
    }
    out[192 + b] = static_cast<uint8_t>(static_cast<int8_t>(best));
    const float scale = d * static_cast<float>(best), inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (int i = 0; i < 16; ++i)
      q[16 * b + i] = static_cast<uint8_t>(nearest(x[16 * b + i] * inverse + 32.0f, 63));
  }
  memset(out, 0, 192);
  for (int i = 0; i < 8; ++i) {  // the block of 32 weights as `read_block` finds it
    for (int j = 0; j < 32; ++j) {
      out[64 * (i / 4) + 32 * (i % 2) + j] |= static_cast<uint8_t>((q[32 * i + j] & 15) << (4 * (i / 2 % 2)));
      out[128 + 32 * (i / 4) + j] |= static_cast<uint8_t>(q[32 * i + j] >> 4 << (2 * (i % 4)));
    }
  }
  put16(out + 208, d16);
}

}  // namespace capax
