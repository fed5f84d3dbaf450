// What turns a block of exact keys and values into codes and back, inside the native program.
//
// A coded store keeps the last blocks of a sequence exactly (pages of 64 positions, as `full` does) and
// every older block as codes. A query at position p reads the token at position j from codes iff
//   j / block_tokens + lag < p / block_tokens
// and exactly otherwise, so its bits depend on positions only. lag = -1 reads the query's own block
// from codes too (steps then begin and end at multiples of block_tokens).
//
//   code page (one block of one sequence) = layers one after another
//     layer = n_kv_heads x head, each head | K codes: k_nbytes(layer) | V codes: v_nbytes(layer) |
//
// A codec is immutable and shared by all threads. It makes codes from the values as the exact pages
// hold them, and what it gives back for a token may not depend on the tile, the rows, the chunk, the
// batch, the threads or the instruction set. Hot loops belong in a kernel table (`kernels().codes`).
#pragma once

#include <stdint.h>

#include <vector>

#include "norms/norms.h"  // RopeStyle

namespace capax {

// For keys kept as they were before their rotation. cos, sin: [n_positions][k_dim / 2].
struct Rotary {
  const float* cos;
  const float* sin;
  RopeStyle style;
};

// One KV head of one block: 64 or 128 tokens.
struct CodeBlock {
  uint8_t* k;         // k_nbytes(layer) bytes; 64-byte aligned
  uint8_t* v;         // v_nbytes(layer) bytes
  int64_t layer;
  int32_t kv_head;
  int64_t position0;  // of the block's first token
  Rotary rotary;
};

// A codec's codes of one KV head of one layer; both multiples of 64.
struct CodeSize {
  int64_t k_nbytes;
  int64_t v_nbytes;
};

class Codec {
 public:
  virtual ~Codec();

  int64_t n_layers() const;
  int32_t n_kv_heads() const;
  int32_t k_dim() const;
  int32_t v_dim() const;
  int64_t block_tokens() const;               // 64 or 128
  CodeSize size(int64_t layer) const;         // of one head
  int64_t layer_offset(int64_t layer) const;  // of the layer in a code page
  int64_t page_nbytes() const;                // of a code page over all layers
  int64_t scratch_floats() const;             // 64-byte aligned scratch, given to every call below

  // k: [block_tokens / 64][k_dim][64], as the exact pages have it, in float32 (rotated);
  // v: [block_tokens][v_stride], v_stride = v_dim rounded up to 16. Writes all bytes of block.k and
  // block.v. A non-finite value must not come back as a finite one.
  virtual void encode(const CodeBlock& block, const float* k, const float* v, float* scratch) const = 0;

  // Page `page` (64 tokens: 0, or 1 of a block of 128) of the block as float32:
  // k_page [k_dim][64] (rotated), v_page [64][v_stride] (what its padding holds does not matter).
  virtual void decode_keys(const CodeBlock& block, int64_t page, float* k_page, float* scratch) const = 0;
  virtual void decode_values(const CodeBlock& block, int64_t page, float* v_page, float* scratch) const = 0;

  // Optional: scores straight from codes. If `scores_codes(layer)`, attention calls `score` instead of
  // decode_keys + its own product: s[r * lds + j] = q_r . k_j (not scaled) for the 64 keys of the page.
  // It is called with 1 .. 48 rows; tables[r] is what `prepare` wrote for row r, or `tables` is null
  // for tiles of many tokens (prefill), where decoding the page once is cheaper. The bits of a score
  // must be the same either way: e.g. always sum over sub-spaces in order of
  // fma(q1, c1, q0 * c0), looked up or computed.
  virtual bool scores_codes(int64_t layer) const;            // false
  virtual int64_t table_floats(int64_t layer) const;         // 0: nothing to prepare; a multiple of 16
  virtual void prepare(int64_t layer, int32_t kv_head, const float* q, float* table) const;
  virtual void score(const CodeBlock& block, int64_t page, const float* const* q, const float* const* tables,
                     int64_t n_rows, float* s, int64_t lds, float* scratch) const;

  // Optional: weighted values straight from codes. If `adds_codes(layer)`, attention calls `add_values`
  // once for all pages of a span that are read from codes (1 .. 8), instead of decode_values + its own
  // product: out[r * ldo + d] += sum over the keys j of the pages of p[r * ldp + j] * v_jd, d in
  // [0, v_dim). p is 0 for keys that are not visible. The same bits for every n_rows (1 .. 48).
  virtual bool adds_codes(int64_t layer) const;              // false
  virtual void add_values(const CodeBlock* blocks, const int64_t* pages, int64_t n_pages, const float* p, int64_t ldp,
                          int64_t n_rows, float* out, int64_t ldo, float* scratch) const;

 protected:
  // sizes: one for each layer. Throws std::invalid_argument for extents out of range.
  Codec(std::vector<CodeSize> sizes, int32_t n_kv_heads, int32_t k_dim, int32_t v_dim, int64_t block_tokens,
        int64_t scratch_floats);
  Codec(const Codec&) = delete;
  Codec& operator=(const Codec&) = delete;

 private:
  std::vector<CodeSize> sizes_;
  std::vector<int64_t> offsets_;  // of the layers, then the end
  int32_t n_kv_heads_, k_dim_, v_dim_;
  int64_t block_tokens_, scratch_floats_;
};

}  // namespace capax
