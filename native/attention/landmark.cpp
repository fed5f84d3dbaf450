#include "attention/landmark.h"

#include <string.h>

#include <algorithm>

#include "kernels.h"

namespace capax {

namespace {

// Where the parts of the scratch of one row begin.
struct Scratch {
  float* keys;      // [block, head_dim], a record's keys at their place
  float* inner;     // [block], scores inside one block
  float* outer;     // [n_blocks + block], scores of landmarks and of the own block's tokens
  float* outputs;   // [n_blocks, head_dim], o_c
};

int64_t most_blocks(const LandmarkShape& s, int64_t n_chosen, int64_t row) { return n_chosen + row / s.block; }

// Rotate `n` rows [head_dim] by consecutive positions.
void rotate(const LandmarkShape& s, float* rows, int64_t n, int64_t position) {
  const int64_t half = s.head_dim / 2;
  for (int64_t i = 0; i < n; ++i)
    kernels().norms.rope(rows + i * s.head_dim, 1, s.head_dim, s.head_dim, s.cos + (position + i) * half,
                         s.sin + (position + i) * half, s.style);
}

// Score the landmark and make o_c of an earlier block whose regular tokens are first .. block - 2.
float read_block(const LandmarkShape& s, const float* q, const float* k, const float* v, int64_t first, float* inner,
                 float* output) {
  const LandmarkKernels& kernel = kernels().landmark;
  const int64_t n_regular = s.block - 1 - first, d = s.head_dim;
  kernel.scores(q, k + first * d, n_regular + 1, d, s.scale, inner);
  const float landmark = inner[n_regular];
  kernels().norms.softmax(inner, n_regular, inner);
  std::fill_n(output, d, 0.0f);
  kernel.accumulate(inner, v + first * d, n_regular, d, output);
  return landmark;
}

}  // namespace

int64_t landmark_scratch_floats(const LandmarkShape& s, int64_t n_chosen, int64_t row) {
  const int64_t n_blocks = most_blocks(s, n_chosen, row);
  return s.block * s.head_dim + s.block + n_blocks + s.block + n_blocks * s.head_dim;
}

void landmark_scores_row(const LandmarkShape& s, const float* q, const float* landmarks, const int32_t* positions,
                         int64_t n, float* turned, float* out) {
  const int64_t d = s.head_dim, half = d / 2;
  for (int64_t begin = 0, end; begin < n; begin = end) {
    for (end = begin + 1; end < n && positions[end] == positions[begin];) ++end;
    // R(p) q . R(c) k = R(-c) R(p) q . k: turning the query back once serves all at one place.
    // Turning back is turning with the roles of cos and sin kept and the sign of sin changed.
    const float* cos = s.cos + positions[begin] * half;
    const float* sin = s.sin + positions[begin] * half;
    for (int64_t i = 0; i < half; ++i) {
      const int64_t a = s.style == RopeStyle::half ? i : 2 * i;
      const int64_t b = s.style == RopeStyle::half ? i + half : 2 * i + 1;
      turned[a] = __builtin_fmaf(q[b], sin[i], q[a] * cos[i]);
      turned[b] = __builtin_fmaf(-q[a], sin[i], q[b] * cos[i]);
    }
    kernels().landmark.scores(turned, landmarks + begin * d, end - begin, d, s.scale, out + begin);
  }
}

int64_t landmark_attend_row(const LandmarkShape& s, int64_t head, const float* q, const float* records,
                            const int32_t* slots, const int32_t* bases, int64_t n_chosen, const LandmarkChunk& chunk,
                            int64_t row, float* scratch, float* out) {
  const int64_t d = s.head_dim, most = most_blocks(s, n_chosen, row);
  const Scratch at = {scratch, scratch + s.block * d, scratch + s.block * d + s.block,
                      scratch + s.block * d + s.block + most + s.block};
  int64_t n_blocks = 0, n_read = 0;
  for (int64_t c = 0; c < n_chosen; ++c) {
    if (slots[c] < 0) continue;
    const float* record = records + slots[c] * s.record_floats();
    memcpy(at.keys, record, static_cast<size_t>(s.block * d) * sizeof(float));
    rotate(s, at.keys, s.block, bases[c]);
    at.outer[n_blocks] = read_block(s, q, at.keys, record + s.block * d, 0, at.inner, at.outputs + n_blocks * d);
    ++n_blocks;
    n_read += s.block;
  }
  const float* k = chunk.k + s.kv_head(head) * chunk.stride * d;
  const float* v = chunk.v + s.kv_head(head) * chunk.stride * d;
  const int64_t own = row / s.block * s.block;
  for (int64_t begin = 0; begin < own; begin += s.block) {
    const int64_t first = std::max<int64_t>(chunk.first - begin, 0);
    if (first >= s.block - 1) continue;  // nothing but a landmark, if that: it has no tokens to stand for
    at.outer[n_blocks] = read_block(s, q, k + begin * d, v + begin * d, first, at.inner, at.outputs + n_blocks * d);
    ++n_blocks;
    n_read += s.block - first;
  }
  // The own block's landmark is no key, not even for itself.
  const int64_t first = std::max(own, chunk.first);
  const int64_t n_own = std::max<int64_t>(std::min(row + 1, own + s.block - 1) - first, 0);
  std::fill_n(out, d, 0.0f);
  if (n_blocks + n_own == 0) return 0;
  const LandmarkKernels& kernel = kernels().landmark;
  kernel.scores(q, k + first * d, n_own, d, s.scale, at.outer + n_blocks);
  kernels().norms.softmax(at.outer, n_blocks + n_own, at.outer);
  kernel.accumulate(at.outer, at.outputs, n_blocks, d, out);
  kernel.accumulate(at.outer + n_blocks, v + first * d, n_own, d, out);
  return n_read + n_own;
}

}  // namespace capax
