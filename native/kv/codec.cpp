#include "kv/codec.h"

#include <stdexcept>
#include <string>

#include "attention/attention.h"

namespace capax {
namespace {

constexpr int64_t kMaxCodeNbytes = int64_t{1} << 24;  // of one head of one block: no codec comes near

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace

Codec::Codec(std::vector<CodeSize> sizes, int32_t n_kv_heads, int32_t k_dim, int32_t v_dim, int64_t block_tokens,
             int64_t scratch_floats)
    : sizes_(std::move(sizes)),
      n_kv_heads_(n_kv_heads),
      k_dim_(k_dim),
      v_dim_(v_dim),
      block_tokens_(block_tokens),
      scratch_floats_((scratch_floats + 15) / 16 * 16) {
  check(!sizes_.empty() && sizes_.size() <= 65536,
        "a codec of " + std::to_string(sizes_.size()) + " layers; 1 to 65536 are possible");
  check(n_kv_heads >= 1 && n_kv_heads <= 4096, "n_kv_heads " + std::to_string(n_kv_heads) + " is not in 1..4096");
  for (const int32_t dim : {k_dim, v_dim})
    check(dim >= 1 && dim <= kMaxHeadDim,
          "head dimension " + std::to_string(dim) + " is not in 1.." + std::to_string(kMaxHeadDim));
  check(block_tokens == kPageTokens || block_tokens == 2 * kPageTokens,
        "a block of " + std::to_string(block_tokens) + " tokens; use 64 or 128");
  offsets_.push_back(0);
  for (const CodeSize& size : sizes_) {
    for (const int64_t nbytes : {size.k_nbytes, size.v_nbytes})
      check(nbytes > 0 && nbytes % 64 == 0 && nbytes <= kMaxCodeNbytes,
            "codes of " + std::to_string(nbytes) + " bytes; a multiple of 64 up to 16777216 is needed");
    offsets_.push_back(offsets_.back() + n_kv_heads * (size.k_nbytes + size.v_nbytes));
  }
}

Codec::~Codec() = default;

int64_t Codec::n_layers() const { return static_cast<int64_t>(sizes_.size()); }
int32_t Codec::n_kv_heads() const { return n_kv_heads_; }
int32_t Codec::k_dim() const { return k_dim_; }
int32_t Codec::v_dim() const { return v_dim_; }
int64_t Codec::block_tokens() const { return block_tokens_; }
CodeSize Codec::size(int64_t layer) const { return sizes_[static_cast<size_t>(layer)]; }
int64_t Codec::layer_offset(int64_t layer) const { return offsets_[static_cast<size_t>(layer)]; }
int64_t Codec::page_nbytes() const { return offsets_.back(); }
int64_t Codec::scratch_floats() const { return scratch_floats_; }

bool Codec::scores_codes(int64_t) const { return false; }
int64_t Codec::table_floats(int64_t) const { return 0; }
void Codec::prepare(int64_t, int32_t, const float*, float*) const {}
void Codec::score(const CodeBlock&, int64_t, const float* const*, const float* const*, int64_t, float*, int64_t,
                  float*) const {}
bool Codec::adds_codes(int64_t) const { return false; }
void Codec::add_values(const CodeBlock*, const int64_t*, int64_t, const float*, int64_t, int64_t, float*, int64_t,
                       float*) const {}

}  // namespace capax
