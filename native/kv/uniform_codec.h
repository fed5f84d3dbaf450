// The plain quantised cache: uniform codes of keys and of values, each along one axis.
//
// One head of one block: | codes of page 0 | (page 1) | scales f16 | zeros f16 | up to a multiple of 64.
#pragma once

#include "kv/codec.h"

namespace capax {

class UniformCodec : public Codec {
 public:
  struct Stream {
    std::vector<int32_t> bits;  // of each layer: 2, 3, 4 or 8
    bool by_token;              // a group is channels of one token; else one channel of the block's tokens
    int64_t group;              // channels of a group, if by_token
  };
  struct Options {
    int32_t n_kv_heads, k_dim, v_dim;
    int64_t block_tokens;
    Stream keys, values;
    bool before_rotation;  // keys are turned back before they are coded
    bool hadamard;         // keys and values are coded after a Hadamard rotation of their channels
  };

  // Throws std::invalid_argument for options that do not fit together.
  explicit UniformCodec(const Options& options);

  void encode(const CodeBlock& block, const float* k, const float* v, float* scratch) const override;
  void decode_keys(const CodeBlock& block, int64_t page, float* k_page, float* scratch) const override;
  void decode_values(const CodeBlock& block, int64_t page, float* v_page, float* scratch) const override;

 private:
  Options o_;
};

}  // namespace capax
