// The one formula that turns a `BlockView` into float32.
#pragma once

#include "isa/isa.h"
#include "quants/blocks.h"

namespace {

template <class Fmt>
static inline void dequantize_block(const BlockView& view, float* out) {
  const float d = f16_to_f32(view.d);
  const float m = Fmt::has_min ? f16_to_f32(view.m) : 0.0f;
  for (int h = 0; h < 2; ++h) {
    const float scale = Fmt::is_k ? d * static_cast<float>(view.scale[h]) : d;
    const float min = Fmt::is_k && Fmt::has_min ? m * static_cast<float>(view.min[h]) : m;
    for (int i = 16 * h; i < 16 * h + 16; ++i) {
      const float product = scale * static_cast<float>(view.q[i] - Fmt::zero);
      out[i] = !Fmt::has_min ? product : Fmt::is_k ? product - min : product + min;
    }
  }
}

}  // namespace
