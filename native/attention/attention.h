// Grouped-query attention over a paged KV cache.
//
// A page holds 64 consecutive positions (aligned to absolute positions) of one layer, all KV heads.
// Keys are stored transposed, so that 16 lanes are 16 keys and scores need no horizontal sums:
//
//   page of a layer = n_kv_heads x head, each head:
//   | K: [k_dim][64 keys] | V: [64 keys][v_stride] |  int8 only: K scales f32 [64] | V scales f32 [64] |
//   v_stride = v_dim rounded up to 16; int8: key = scale * (byte - 128), one scale per (token, head),
//   four channels of a key and four keys of a value side by side as in attention/bytes.h
//
//   page p of layer l = pool + page_table[p] * page_stride + l * layer_page_nbytes(layout)
//
// Warm = cold = batched, bit for bit. Work is cut into spans of 512 absolute positions. Per query row
// and span, in this order whatever the number of queries processed together:
//   s_j = (sum over d, in order, of fma(q_d, k_jd)) [* key scale] * scale    for the visible keys j
//   m = max s_j;  p_j = exp(s_j - m);  l = sum p_j: key j in lane j % 16 of accumulator (j / 16) % 4
//   acc_d = fma over j in order of p_j [* value scale] * v_jd
// Of a coded cache the first pages are decoded by its codec, once for a tile, and then go the same way.
// An int8 cache is multiplied in integers: q, and p_j * value scale of each page, are rounded to 16 bits
// with a scale of their own, sums of products are exact, and one float product follows per chunk of 64
// channels (keys) or page (values).
// A key that is not visible contributes exactly nothing. Spans with a visible key are merged in
// ascending order by one formula, and the result is divided by l once at the end. So a row's bits are
// a function of its q and of the keys it sees, not of the tile, the chunk, the batch or the threads.
#pragma once

#include <stdint.h>

#include "kv/codec.h"

namespace capax {

constexpr int64_t kPageTokens = 64;
constexpr int64_t kSpanTokens = 512;
constexpr int32_t kMaxHeadDim = 1024;

enum class KVType : int32_t { f32 = 0, f16 = 1, bf16 = 2, int8 = 3 };

// What a page of one layer looks like. All sizes and offsets come from the functions below.
struct KVLayout {
  KVType type;
  int32_t n_kv_heads;
  int32_t k_dim;
  int32_t v_dim;
};

static inline int64_t kv_element_nbytes(KVType type) {
  return type == KVType::f32 ? 4 : type == KVType::int8 ? 1 : 2;
}
static inline int64_t kv_v_stride(const KVLayout& layout) { return (static_cast<int64_t>(layout.v_dim) + 15) / 16 * 16; }
static inline int64_t kv_k_nbytes(const KVLayout& layout) {
  const int64_t k_dim = layout.type == KVType::int8 ? (layout.k_dim + 3) / 4 * 4 : layout.k_dim;
  return kPageTokens * k_dim * kv_element_nbytes(layout.type);
}
static inline int64_t kv_v_nbytes(const KVLayout& layout) {
  return kPageTokens * kv_v_stride(layout) * kv_element_nbytes(layout.type);
}
static inline int64_t kv_scale_nbytes(const KVLayout& layout) {
  return layout.type == KVType::int8 ? kPageTokens * static_cast<int64_t>(sizeof(float)) : 0;
}
static inline int64_t kv_head_nbytes(const KVLayout& layout) {
  return kv_k_nbytes(layout) + kv_v_nbytes(layout) + 2 * kv_scale_nbytes(layout);
}
// Bytes of one page of one layer; a multiple of 64.
static inline int64_t layer_page_nbytes(const KVLayout& layout) { return layout.n_kv_heads * kv_head_nbytes(layout); }

// One sequence's cache of one layer. Pages are zeroed when they are allocated.
struct KVView {
  KVLayout layout;
  uint8_t* base;              // pool + layer * layer_page_nbytes(layout), 64-byte aligned
  int64_t page_stride;        // bytes from page to page of the pool
  const int32_t* page_table;  // [pages of the sequence]: position / 64 -> page of the pool, or, of a coded
                              // cache, -1 - passing page
  uint8_t* passing = nullptr;  // passing pages of this layer, whose codes replace them within the step
};

// Where one head of one page lies.
struct KVHead {
  uint8_t* k;
  uint8_t* v;
  float* k_scale;  // [64], int8 only
  float* v_scale;
};
static inline KVHead kv_head_at(const KVView& view, int64_t page, int64_t kv_head) {
  const int64_t id = view.page_table[page];
  uint8_t* layer = id >= 0 ? view.base + id * view.page_stride : view.passing - (id + 1) * layer_page_nbytes(view.layout);
  uint8_t* head = layer + kv_head * kv_head_nbytes(view.layout);
  uint8_t* v = head + kv_k_nbytes(view.layout);
  uint8_t* scales = v + kv_v_nbytes(view.layout);
  return {head, v, reinterpret_cast<float*>(scales), reinterpret_cast<float*>(scales + kv_scale_nbytes(view.layout))};
}

// The codes of one sequence and layer. Pages of 64 positions before `n_pages` are read from them.
struct CodedView {
  const Codec* codec = nullptr;  // null: every page is exact
  uint8_t* base = nullptr;       // pool of code pages + codec->layer_offset(layer)
  int64_t page_stride = 0;
  const int32_t* table = nullptr;  // block of the sequence -> page of the pool
  int64_t layer = 0;
  Rotary rotary{};
  int64_t n_pages = 0;
};
static inline CodeBlock code_block_at(const CodedView& view, int64_t block, int64_t kv_head) {
  const CodeSize size = view.codec->size(view.layer);
  uint8_t* head = view.base + view.table[block] * view.page_stride + kv_head * (size.k_nbytes + size.v_nbytes);
  return {head, head + size.k_nbytes, view.layer, static_cast<int32_t>(kv_head), block * view.codec->block_tokens(),
          view.rotary};
}

// Queries of consecutive positions of one sequence against its cache.
// Query head h reads KV head h / n_group. All keys that the queries may see are already appended.
struct Attend {
  KVView view;
  const float* q;     // q of token t, head h: q + t * ldq + h * k_dim, already rotated
  int64_t ldq;
  float* out;         // output of token t, head h: out + t * ldo + h * v_dim
  int64_t ldo;
  int64_t n_tokens;
  int64_t position0;  // position of token 0
  int32_t n_group;    // query heads per KV head
  int32_t window;     // 0: all; else keys k with position - k < window (and k - position < window)
  int64_t n_keys;     // 0: causal, keys 0..position; else bidirectional over keys 0..n_keys - 1
  float scale;
  CodedView codes;      // the same pages of codes for all of the tokens
  const float* tables;  // what the codec prepared for query row (t, h): tables + (t * heads + h) * ld_table,
  int64_t ld_table;     // heads = n_group * n_kv_heads; or null
};

struct Range {
  int64_t begin, end;
};
// The keys that a query at `position` sees.
static inline Range visible_keys(const Attend& a, int64_t position) {
  int64_t begin = 0, end = a.n_keys > 0 ? a.n_keys : position + 1;
  if (a.window > 0) {
    if (position + 1 - a.window > begin) begin = position + 1 - a.window;
    if (position + a.window < end) end = position + a.window;
  }
  return {begin, end};
}
// The spans that contain them, [begin, end).
static inline Range visible_spans(const Attend& a, int64_t position) {
  const Range keys = visible_keys(a, position);
  return {keys.begin / kSpanTokens, (keys.end + kSpanTokens - 1) / kSpanTokens};
}

// A partial result of one row and span: | m | l | 14 unused | acc[v_stride] | in floats.
static inline int64_t partial_floats(const KVLayout& layout) { return 16 + kv_v_stride(layout); }

// Rows (tokens x n_group) that one pass of the kernels works on.
static inline int64_t attend_tile_tokens(int32_t n_group) { return n_group >= 48 ? 1 : 48 / n_group; }
// Scratch for attend, attend_span and attend_shared_span, in floats, per thread; 64-byte aligned.
// codec: of the cache, or null.
static inline int64_t attend_scratch_floats(const KVLayout& layout, int32_t n_group, const Codec* codec) {
  const int64_t rows = attend_tile_tokens(n_group) * n_group;
  return rows * (kSpanTokens + 2 * partial_floats(layout)) + kPageTokens * (layout.k_dim + kv_v_stride(layout)) +
         (codec ? codec->scratch_floats() : 0);
}

struct AttentionKernels {
  // Store n_tokens keys and values at positions position0.. for the KV heads [head_begin, head_end).
  // k of token t, head h: k + t * ldk + h * k_dim (rotated); v: v + t * ldv + h * v_dim.
  void (*append)(const KVView& view, const float* k, int64_t ldk, const float* v, int64_t ldv, int64_t n_tokens,
                 int64_t position0, int32_t head_begin, int32_t head_end);
  // Page `page` of the sequence and one head as float32: k [k_dim][64], v [64][v_stride]. Not for int8.
  void (*read_page)(const KVView& view, int64_t page, int32_t kv_head, float* k, float* v);
  // The whole attention of tokens [token_begin, token_end) for one KV head (its n_group query heads).
  // Tokens and heads may be split over threads in any way.
  void (*attend)(const Attend& a, int32_t kv_head, int64_t token_begin, int64_t token_end, float* scratch);
  // The same for one token in parallel pieces: one call per (KV head, span), then merge. Writes
  // partial[g * partial_floats(layout)] for g < n_group. The span must be one of visible_spans.
  void (*attend_span)(const Attend& a, int32_t kv_head, int64_t token, int64_t span, float* scratch, float* partial);
  // The same for one token (token 0) each of several sequences, at most attend_tile_tokens of them,
  // whose first n_shared_pages pages are the same and visible to all: each of those pages is read
  // once. Without a window. Writes partials[i] of member i, as attend_span would; members that see
  // no key of the span are left alone.
  void (*attend_shared_span)(const Attend* members, int64_t n_members, int32_t kv_head, int64_t span,
                             int64_t n_shared_pages, float* scratch, float* const* partials);
  // Combine the partials of spans visible_spans(a, position0 + token), in order; span s of the
  // visible ones starts at partials + s * span_stride. Overwrites the first; writes out.
  void (*merge)(const Attend& a, int32_t kv_head, int64_t token, float* partials, int64_t span_stride);
};

}  // namespace capax
