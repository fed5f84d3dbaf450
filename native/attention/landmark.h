// Landmark attention (Mohtashami and Jaggi, 2023, arXiv 2305.16300), the fused form.
//
// Every block of `block` tokens ends with a landmark. A query reads the regular tokens of its own
// block plainly. Of an earlier block c it first makes one value o_c, the softmax of its scores over
// the block's regular tokens applied to their values, and then reads o_c like one more token whose
// score is that of the landmark. Landmarks have no value: theirs is never read.
//
//   record of a block and KV head: | K of block tokens [block][head_dim] | V [block][head_dim] |
//
// K of a record is not rotated: a block is read at the place it is given. Each (row, head) is one
// independent sum in a fixed order, so its bits do not depend on what else is in the call.
#pragma once

#include <stdint.h>

#include "norms/norms.h"

namespace capax {

struct LandmarkKernels {
  // out[i] = scale * (q . keys[i]), i < n. keys: [n, head_dim].
  void (*scores)(const float* q, const float* keys, int64_t n, int64_t head_dim, float scale, float* out);
  // out += sum of weights[i] * values[i], in order of i. values: [n, head_dim].
  void (*accumulate)(const float* weights, const float* values, int64_t n, int64_t head_dim, float* out);
};

struct LandmarkShape {
  int64_t n_heads, n_kv_heads, head_dim, block;
  float scale;
  const float* cos;  // [n_positions, head_dim / 2]
  const float* sin;
  RopeStyle style;

  int64_t record_floats() const { return 2 * block * head_dim; }
  int64_t kv_head(int64_t head) const { return head / (n_heads / n_kv_heads); }
};

// The keys a query may read without choosing: a run of tokens that begins at a block's edge.
struct LandmarkChunk {
  const float* k;  // [n_kv_heads, stride, head_dim], rotated
  const float* v;
  int64_t stride;
  int64_t first;  // tokens before it do not exist: the first block may be short
};

// Floats of scratch one call of `landmark_attend_row` needs.
int64_t landmark_scratch_floats(const LandmarkShape& shape, int64_t n_chosen, int64_t row);

// out[c] = score of landmark c for the query, rotated as if the landmark stood at positions[c].
// q: [head_dim], rotated at its own position; landmarks: [n, head_dim], not rotated.
// scratch: head_dim floats.
void landmark_scores_row(const LandmarkShape& shape, const float* q, const float* landmarks, const int32_t* positions,
                         int64_t n, float* scratch, float* out);

// out: [head_dim] of one query row and head. slots, bases: [n_chosen], which record and the position
// of its first token; a slot of -1 is none. row: the query's place in the chunk.
// Returns how many keys were read, landmarks included.
int64_t landmark_attend_row(const LandmarkShape& shape, int64_t head, const float* q, const float* records,
                            const int32_t* slots, const int32_t* bases, int64_t n_chosen, const LandmarkChunk& chunk,
                            int64_t row, float* scratch, float* out);

}  // namespace capax
