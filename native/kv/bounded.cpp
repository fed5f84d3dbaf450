#include "kv/bounded.h"

#include <vector>

#include "isa/isa.h"
#include "kernels.h"

namespace capax {
namespace {

template <class T>
void keep_elements(const KVView& view, int32_t kv_head, const int32_t* keep, int64_t n_keep) {
  const KVLayout& layout = view.layout;
  const int64_t k_dim = layout.k_dim, v_stride = kv_v_stride(layout);
  for (int64_t i = 0; i < n_keep; ++i) {
    if (keep[i] == i) continue;
    const KVHead from = kv_head_at(view, keep[i] / kPageTokens, kv_head), to = kv_head_at(view, i / kPageTokens, kv_head);
    const int64_t source = keep[i] % kPageTokens, target = i % kPageTokens;
    const T* k_from = reinterpret_cast<const T*>(from.k) + source;
    T* k_to = reinterpret_cast<T*>(to.k) + target;
    for (int64_t d = 0; d < k_dim; ++d) k_to[d * kPageTokens] = k_from[d * kPageTokens];
    const T* v_from = reinterpret_cast<const T*>(from.v) + source * v_stride;
    T* v_to = reinterpret_cast<T*>(to.v) + target * v_stride;
    for (int64_t d = 0; d < v_stride; ++d) v_to[d] = v_from[d];
  }
}

// The keys of a page as float32: [k_dim][64].
void load_keys(const KVView& view, int64_t page, int32_t kv_head, float* out) {
  const KVHead head = kv_head_at(view, page, kv_head);
  const int64_t n = kPageTokens * view.layout.k_dim;
  switch (view.layout.type) {
    case KVType::f32:
      for (int64_t i = 0; i < n; ++i) out[i] = reinterpret_cast<const float*>(head.k)[i];
      break;
    case KVType::f16:
      for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(reinterpret_cast<const uint16_t*>(head.k)[i]);
      break;
    case KVType::bf16:
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(reinterpret_cast<const uint16_t*>(head.k)[i]);
      break;
    case KVType::int8: break;  // refused: entries are moved in float types only
  }
}

}  // namespace

void keep_entries(const KVView& view, int32_t kv_head, const int32_t* keep, int64_t n_keep) {
  switch (kv_element_nbytes(view.layout.type)) {
    case 4: return keep_elements<uint32_t>(view, kv_head, keep, n_keep);
    case 2: return keep_elements<uint16_t>(view, kv_head, keep, n_keep);
    default: return;  // int8: refused
  }
}

void add_attention(const Attend& a, int32_t kv_head, float* weights) {
  const int64_t k_dim = a.view.layout.k_dim, n_rows = a.n_tokens * a.n_group, n_entries = a.position0 + a.n_tokens;
  const int64_t n_pages = (n_entries + kPageTokens - 1) / kPageTokens, stride = n_pages * kPageTokens;
  std::vector<float> keys(static_cast<size_t>(kPageTokens * k_dim)), scores(static_cast<size_t>(n_rows * stride));
  for (int64_t page = 0; page < n_pages; ++page) {
    load_keys(a.view, page, kv_head, keys.data());
    for (int64_t row = 0; row < n_rows; ++row) {
      const float* q = a.q + row / a.n_group * a.ldq + (kv_head * a.n_group + row % a.n_group) * k_dim;
      float* s = scores.data() + row * stride + page * kPageTokens;
      for (int64_t d = 0; d < k_dim; ++d) {
        const float x = q[d] * a.scale;
        const float* key = keys.data() + d * kPageTokens;
        for (int64_t j = 0; j < kPageTokens; ++j) s[j] += x * key[j];
      }
    }
  }
  for (int64_t row = 0; row < n_rows; ++row) {
    float* s = scores.data() + row * stride;
    const int64_t n_visible = a.position0 + row / a.n_group + 1;
    kernels().norms.softmax(s, n_visible, s);
    for (int64_t j = 0; j < n_visible; ++j) weights[j] += s[j];
  }
}

}  // namespace capax
