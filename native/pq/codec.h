// Product quantisation as the codec of a coded cache.
//
// codes of one head of one block: its pages of 64 tokens one after another, each as pq.h lays it out;
// a layer without codebooks is kept exactly: keys float16 [k_dim][64], values float16 [64][v_stride].
#pragma once

#include <vector>

#include "kv/codec.h"
#include "pq/pq.h"

namespace capax {

// Centroids of keys or of values, bfloat16 [n_subspaces][2^n_bits][sub_dim].
class PQBook {
 public:
  // Throws std::invalid_argument for extents out of range, and for a centroid that is not finite, but
  // for the last of sub-space 0, which must be NaN.
  PQBook(const uint16_t* centroids, int64_t n_subspaces, int64_t n_centroids, int64_t sub_dim);

  PQTable table() const;
  int64_t nbytes() const;

 private:
  int32_t n_subspaces_, sub_dim_, n_bits_ = 0;
  std::vector<uint16_t> centroids_;
  std::vector<uint8_t> planes_;
};

class PQCodec : public Codec {
 public:
  static constexpr int32_t kExact = -1;
  struct Options {
    int32_t n_kv_heads, k_dim, v_dim;
    int64_t block_tokens;
    std::vector<PQBook> k_books, v_books;
    std::vector<int32_t> k_book, v_book;  // of each layer and head [n_layers * n_kv_heads], or kExact for a layer
    PQSum sum;
    bool uses_tables;  // by_subspace only: decode steps look scores up instead of computing them
  };

  // Throws std::invalid_argument for books that do not fit the heads or each other.
  explicit PQCodec(Options options);

  int64_t books_nbytes() const;

  void encode(const CodeBlock& block, const float* k, const float* v, float* scratch) const override;
  void decode_keys(const CodeBlock& block, int64_t page, float* k_page, float* scratch) const override;
  void decode_values(const CodeBlock& block, int64_t page, float* v_page, float* scratch) const override;
  bool scores_codes(int64_t layer) const override;
  int64_t table_floats(int64_t layer) const override;
  void prepare(int64_t layer, int32_t kv_head, const float* q, float* table) const override;
  void score(const CodeBlock& block, int64_t page, const float* const* q, const float* const* tables, int64_t n_rows,
             float* s, int64_t lds, float* scratch) const override;
  bool adds_codes(int64_t layer) const override;
  void add_values(const CodeBlock* blocks, const int64_t* pages, int64_t n_pages, const float* p, int64_t ldp,
                  int64_t n_rows, float* out, int64_t ldo, float* scratch) const override;

 private:
  int32_t k_book_of(int64_t layer, int32_t kv_head) const;
  int32_t v_book_of(int64_t layer, int32_t kv_head) const;
  PQTable k_table(int64_t layer, int32_t kv_head) const;
  PQTable v_table(int64_t layer, int32_t kv_head) const;

  Options o_;
};

}  // namespace capax
