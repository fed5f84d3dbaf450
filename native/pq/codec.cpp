#include "pq/codec.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "attention/attention.h"
#include "isa/isa.h"
#include "kernels.h"

namespace capax {
namespace {

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
bool is_finite(uint16_t bits) { return (bits & 0x7f80u) != 0x7f80u; }  // of a bfloat16
bool is_nan(uint16_t bits) { return (bits & 0x7fffu) > 0x7f80u; }

// Bytes of a page of one head of a layer that is kept exactly, and of one with codes.
int64_t exact_nbytes(int64_t n_rows, int64_t n_cols) { return n_rows * n_cols * static_cast<int64_t>(sizeof(uint16_t)); }
int64_t coded_nbytes(const PQTable& table) { return pq_page_nbytes(table.n_subspaces, table.n_bits); }

// Keys or values: what a layer's heads have in common.
struct Side {
  const char* name;
  const std::vector<PQBook>& books;
  const std::vector<int32_t>& book;  // of each layer and head
  int64_t dim;
  int64_t exact;                     // bytes of a page of one head
};

int64_t page_nbytes_of(const Side& side, int64_t layer, int32_t n_heads) {
  const int32_t* book = side.book.data() + layer * n_heads;
  const int64_t n_books = static_cast<int64_t>(side.books.size());
  for (int32_t head = 0; head < n_heads; ++head) {
    check(book[head] >= PQCodec::kExact && book[head] < n_books,
          "layer " + std::to_string(layer) + " names book " + std::to_string(book[head]) + " of " +
              std::to_string(n_books) + " for its " + side.name);
    check((book[head] == PQCodec::kExact) == (book[0] == PQCodec::kExact),
          "layer " + std::to_string(layer) + " has books for some heads only; give one to all or to none");
  }
  if (book[0] == PQCodec::kExact) return side.exact;
  const PQTable first = side.books[static_cast<size_t>(book[0])].table();
  for (int32_t head = 0; head < n_heads; ++head) {
    const PQTable table = side.books[static_cast<size_t>(book[head])].table();
    check(pq_dim(table) == side.dim, std::string("a book for ") + side.name + " of " + std::to_string(pq_dim(table)) +
                                         " channels does not fit heads of " + std::to_string(side.dim));
    check(table.n_subspaces == first.n_subspaces && table.n_bits == first.n_bits,
          "the heads of layer " + std::to_string(layer) + " have books of different shapes");
  }
  check(coded_nbytes(first) % 64 == 0,
        std::to_string(first.n_subspaces) + " sub-spaces of " + std::to_string(first.n_bits) +
            " bits do not fill whole bytes of a token: their product must be a multiple of 8");
  return coded_nbytes(first);
}

std::vector<CodeSize> sizes_of(const PQCodec::Options& o) {
  check(o.n_kv_heads >= 1 && o.n_kv_heads <= 4096, "n_kv_heads " + std::to_string(o.n_kv_heads) + " is not in 1..4096");
  check(o.k_book.size() == o.v_book.size() && o.k_book.size() % static_cast<size_t>(o.n_kv_heads) == 0,
        "keys and values must name a book for each layer and head");
  check(o.sum == PQSum::by_subspace || !o.uses_tables, "tables add by sub-space");
  const Side keys{"keys", o.k_books, o.k_book, o.k_dim, exact_nbytes(o.k_dim, kPQTokens)};
  const Side values{"values", o.v_books, o.v_book, o.v_dim, exact_nbytes(kPQTokens, round_up(o.v_dim, 16))};
  const int64_t n_pages = o.block_tokens / kPQTokens;
  std::vector<CodeSize> sizes;
  for (int64_t layer = 0; layer < static_cast<int64_t>(o.k_book.size()) / o.n_kv_heads; ++layer)
    sizes.push_back({n_pages * page_nbytes_of(keys, layer, o.n_kv_heads), n_pages * page_nbytes_of(values, layer, o.n_kv_heads)});
  return sizes;
}

int64_t scratch_of(const PQCodec::Options& o) {
  int64_t centroids = 0;
  for (const auto* books : {&o.k_books, &o.v_books})
    for (const PQBook& book : *books)
      centroids = std::max(centroids, pq_n_centroids(book.table()) * book.table().sub_dim);
  const int64_t page = pq_page_floats(std::max(o.k_dim, o.v_dim));
  return std::max(page + round_up(centroids, 16), kMaxPQPages * pq_page_floats(o.v_dim));
}

}  // namespace

PQBook::PQBook(const uint16_t* centroids, int64_t n_subspaces, int64_t n_centroids, int64_t sub_dim) {
  check(n_subspaces >= 1 && n_subspaces <= kMaxHeadDim && sub_dim >= 1 && sub_dim <= kMaxSubDim,
        "a book of " + std::to_string(n_subspaces) + " sub-spaces of " + std::to_string(sub_dim) + " channels; 1 to " +
            std::to_string(kMaxHeadDim) + " of 1 to " + std::to_string(kMaxSubDim) + " are possible");
  while (n_bits_ <= kMaxPQBits && (int64_t{1} << n_bits_) < n_centroids) ++n_bits_;
  check(n_centroids >= 2 && n_bits_ <= kMaxPQBits && (int64_t{1} << n_bits_) == n_centroids,
        "a book of " + std::to_string(n_centroids) + " centroids; a power of two from 2 to 4096 is needed");
  n_subspaces_ = static_cast<int32_t>(n_subspaces);
  sub_dim_ = static_cast<int32_t>(sub_dim);
  const int64_t n = n_subspaces * n_centroids * sub_dim, of_nan = (n_centroids - 1) * sub_dim;
  for (int64_t i = 0; i < n; ++i) {
    const bool expects_nan = i >= of_nan && i < of_nan + sub_dim;
    check(expects_nan ? is_nan(centroids[i]) : is_finite(centroids[i]),
          expects_nan ? std::string("the last centroid of sub-space 0 must be NaN")
                      : "centroid " + std::to_string(i / sub_dim % n_centroids) + " of sub-space " +
                            std::to_string(i / sub_dim / n_centroids) + " is not finite");
  }
  centroids_.assign(centroids, centroids + n);
  if (n_bits_ > 8) return;
  planes_.assign(static_cast<size_t>(n_subspaces * sub_dim * 512), 0);
  for (int64_t m = 0; m < n_subspaces; ++m)
    for (int64_t c = 0; c < n_centroids; ++c)
      for (int64_t i = 0; i < sub_dim; ++i) {
        const uint16_t bits = centroids[(m * n_centroids + c) * sub_dim + i];
        uint8_t* plane = planes_.data() + (m * sub_dim + i) * 512 + c;
        plane[0] = static_cast<uint8_t>(bits & 0xffu);
        plane[256] = static_cast<uint8_t>(bits >> 8);
      }
}

PQTable PQBook::table() const {
  return {n_subspaces_, sub_dim_, n_bits_, centroids_.data(), planes_.empty() ? nullptr : planes_.data()};
}

int64_t PQBook::nbytes() const { return static_cast<int64_t>(centroids_.size() * sizeof(uint16_t) + planes_.size()); }

PQCodec::PQCodec(Options options)
    : Codec(sizes_of(options), options.n_kv_heads, options.k_dim, options.v_dim, options.block_tokens, scratch_of(options)),
      o_(std::move(options)) {}

int64_t PQCodec::books_nbytes() const {
  int64_t nbytes = 0;
  for (const auto* books : {&o_.k_books, &o_.v_books})
    for (const PQBook& book : *books) nbytes += book.nbytes();
  return nbytes;
}

int32_t PQCodec::k_book_of(int64_t layer, int32_t kv_head) const {
  return o_.k_book[static_cast<size_t>(layer * o_.n_kv_heads + kv_head)];
}
int32_t PQCodec::v_book_of(int64_t layer, int32_t kv_head) const {
  return o_.v_book[static_cast<size_t>(layer * o_.n_kv_heads + kv_head)];
}
PQTable PQCodec::k_table(int64_t layer, int32_t kv_head) const {
  return o_.k_books[static_cast<size_t>(k_book_of(layer, kv_head))].table();
}
PQTable PQCodec::v_table(int64_t layer, int32_t kv_head) const {
  return o_.v_books[static_cast<size_t>(v_book_of(layer, kv_head))].table();
}

bool PQCodec::scores_codes(int64_t layer) const { return k_book_of(layer, 0) != kExact; }
bool PQCodec::adds_codes(int64_t layer) const { return v_book_of(layer, 0) != kExact; }

void PQCodec::encode(const CodeBlock& block, const float* k, const float* v, float* scratch) const {
  const PQKernels& kernel = kernels().pq;
  const int64_t v_stride = round_up(o_.v_dim, 16), v_floats = kPQTokens * v_stride;
  float* columns = scratch;  // values turned over
  float* centroids = scratch + pq_page_floats(std::max(o_.k_dim, o_.v_dim));
  for (int64_t page = 0; page < o_.block_tokens / kPQTokens; ++page, k += kPQTokens * o_.k_dim, v += v_floats) {
    if (scores_codes(block.layer)) {
      const PQTable table = k_table(block.layer, block.kv_head);
      kernel.encode(table, k, block.k + page * coded_nbytes(table), centroids);
    } else {
      const int64_t n = kPQTokens * o_.k_dim;
      kernel.to_float16(k, n, reinterpret_cast<uint16_t*>(block.k) + page * n);
    }
    if (adds_codes(block.layer)) {
      for (int64_t d = 0; d < o_.v_dim; ++d)
        for (int64_t t = 0; t < kPQTokens; ++t) columns[d * kPQTokens + t] = v[t * v_stride + d];
      const PQTable table = v_table(block.layer, block.kv_head);
      kernel.encode(table, columns, block.v + page * coded_nbytes(table), centroids);
    } else {
      kernel.to_float16(v, v_floats, reinterpret_cast<uint16_t*>(block.v) + page * v_floats);
    }
  }
}

void PQCodec::decode_keys(const CodeBlock& block, int64_t page, float* k_page, float*) const {
  const PQKernels& kernel = kernels().pq;
  const int64_t n = kPQTokens * o_.k_dim;
  if (!scores_codes(block.layer)) return kernel.from_float16(reinterpret_cast<const uint16_t*>(block.k) + page * n, n, k_page);
  const PQTable table = k_table(block.layer, block.kv_head);
  kernel.decode_columns(table, block.k + page * coded_nbytes(table), k_page);
}

void PQCodec::decode_values(const CodeBlock& block, int64_t page, float* v_page, float*) const {
  const PQKernels& kernel = kernels().pq;
  const int64_t v_stride = round_up(o_.v_dim, 16), n = kPQTokens * v_stride;
  if (!adds_codes(block.layer)) return kernel.from_float16(reinterpret_cast<const uint16_t*>(block.v) + page * n, n, v_page);
  const PQTable table = v_table(block.layer, block.kv_head);
  kernel.decode_rows(table, block.v + page * coded_nbytes(table), v_stride, v_page);
}

int64_t PQCodec::table_floats(int64_t layer) const {
  if (!o_.uses_tables || !scores_codes(layer)) return 0;
  const PQTable table = k_table(layer, 0);
  return round_up(table.n_subspaces * pq_n_centroids(table), 16);
}

void PQCodec::prepare(int64_t layer, int32_t kv_head, const float* q, float* table) const {
  kernels().pq.prepare(k_table(layer, kv_head), q, table);
}

void PQCodec::score(const CodeBlock& block, int64_t page, const float* const* q, const float* const* tables,
                    int64_t n_rows, float* s, int64_t lds, float* scratch) const {
  const PQTable table = k_table(block.layer, block.kv_head);
  kernels().pq.score(table, o_.sum, block.k + page * coded_nbytes(table), q, tables, n_rows, s, lds, scratch);
}

void PQCodec::add_values(const CodeBlock* blocks, const int64_t* pages, int64_t n_pages, const float* p, int64_t ldp,
                         int64_t n_rows, float* out, int64_t ldo, float* scratch) const {
  const PQTable table = v_table(blocks[0].layer, blocks[0].kv_head);
  const uint8_t* codes[kMaxPQPages];
  for (int64_t i = 0; i < n_pages; ++i) codes[i] = blocks[i].v + pages[i] * coded_nbytes(table);
  kernels().pq.add_values(table, codes, n_pages, p, ldp, n_rows, out, ldo, scratch);
}

}  // namespace capax
