#include "kv/uniform_codec.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "attention/attention.h"
#include "kernels.h"

namespace capax {
namespace {

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

UniformShape shape_of_keys(const UniformCodec::Options& o, int64_t layer) {
  const int32_t bits = o.keys.bits[static_cast<size_t>(layer)];
  if (o.keys.by_token) return {o.k_dim, kPageTokens, kPageTokens, o.keys.group, bits, false};
  return {o.k_dim, kPageTokens, kPageTokens, kPageTokens, bits, true};
}

UniformShape shape_of_values(const UniformCodec::Options& o, int64_t layer) {
  const int32_t bits = o.values.bits[static_cast<size_t>(layer)];
  const int64_t stride = round_up(o.v_dim, 16);
  if (o.values.by_token) return {kPageTokens, stride, o.v_dim, o.values.group, bits, true};
  return {kPageTokens, stride, o.v_dim, kPageTokens, bits, false};
}

// The codes of a block: groups along tokens extend over all its pages, the others have their own.
struct Parts {
  UniformShape shape;
  int64_t n_pages;
  bool by_token;

  int64_t page_numbers() const { return uniform_groups(shape); }
  int64_t n_numbers() const { return by_token ? n_pages * page_numbers() : page_numbers(); }
  int64_t nbytes() const {
    return round_up(n_pages * uniform_code_nbytes(shape) + 2 * n_numbers() * static_cast<int64_t>(sizeof(uint16_t)), 64);
  }
  template <class Byte>
  Byte* codes(Byte* at, int64_t page) const {
    return at + page * uniform_code_nbytes(shape);
  }
  template <class Byte>
  auto scales(Byte* at, int64_t page) const {
    using Half = std::conditional_t<std::is_const_v<Byte>, const uint16_t, uint16_t>;
    return reinterpret_cast<Half*>(codes(at, n_pages)) + (by_token ? page * page_numbers() : 0);
  }
  template <class Byte>
  auto zeros(Byte* at, int64_t page) const {
    return scales(at, page) + n_numbers();
  }
};

void encode_parts(const Parts& parts, const float* x, uint8_t* to, float* scratch) {
  const UniformKernels& kernel = kernels().uniform;
  std::memset(to, 0, static_cast<size_t>(parts.nbytes()));
  const int64_t page_floats = parts.shape.n_rows * parts.shape.n_cols;
  if (!parts.by_token) kernel.measure(parts.shape, x, parts.n_pages, parts.scales(to, 0), parts.zeros(to, 0), scratch);
  for (int64_t page = 0; page < parts.n_pages; ++page) {
    const float* of_page = x + page * page_floats;
    if (parts.by_token)
      kernel.measure(parts.shape, of_page, 1, parts.scales(to, page), parts.zeros(to, page), scratch);
    kernel.encode(parts.shape, of_page, parts.scales(to, page), parts.zeros(to, page), parts.codes(to, page), scratch);
  }
}

void decode_part(const Parts& parts, const uint8_t* from, int64_t page, float* x, float* scratch) {
  kernels().uniform.decode(parts.shape, parts.codes(from, page), parts.scales(from, page), parts.zeros(from, page), x,
                           scratch);
}

Parts key_parts(const UniformCodec::Options& o, int64_t layer) {
  return {shape_of_keys(o, layer), o.block_tokens / kPageTokens, o.keys.by_token};
}
Parts value_parts(const UniformCodec::Options& o, int64_t layer) {
  return {shape_of_values(o, layer), o.block_tokens / kPageTokens, o.values.by_token};
}

void check_stream(const UniformCodec::Stream& stream, int64_t dim, const char* name) {
  for (const int32_t bits : stream.bits)
    check(bits == 2 || bits == 3 || bits == 4 || bits == 8,
          std::string(name) + " have " + std::to_string(bits) + " bits; use 2, 3, 4 or 8");
  if (stream.by_token)
    check(stream.group >= 1 && stream.group <= dim && dim % stream.group == 0 &&
              (stream.group % 16 == 0 || stream.group == dim),
          std::string(name) + " have groups of " + std::to_string(stream.group) + " channels; a head has " +
              std::to_string(dim) + ": use a multiple of 16 that divides it, or all of them");
}

const UniformCodec::Options& checked(const UniformCodec::Options& o) {
  check(o.k_dim >= 2 && o.k_dim % 2 == 0 && o.k_dim <= kMaxHeadDim && o.v_dim >= 1 && o.v_dim <= kMaxHeadDim,
        "heads of " + std::to_string(o.k_dim) + " and " + std::to_string(o.v_dim) + " channels; keys need an even number, both at most " +
            std::to_string(kMaxHeadDim));
  check(o.block_tokens == kPageTokens || o.block_tokens == 2 * kPageTokens,
        "a block of " + std::to_string(o.block_tokens) + " tokens; use 64 or 128");
  check(!o.keys.bits.empty() && o.keys.bits.size() == o.values.bits.size(), "keys and values need as many layers");
  check_stream(o.keys, o.k_dim, "keys");
  check_stream(o.values, o.v_dim, "values");
  check(!o.hadamard || (is_power_of_two(o.k_dim) && is_power_of_two(o.v_dim)),
        "a Hadamard rotation needs heads of a power of two channels, not " + std::to_string(o.k_dim) + " and " +
            std::to_string(o.v_dim));
  return o;
}

std::vector<CodeSize> sizes_of(const UniformCodec::Options& o) {
  std::vector<CodeSize> sizes;
  for (size_t layer = 0; layer < o.keys.bits.size(); ++layer)
    sizes.push_back({key_parts(o, static_cast<int64_t>(layer)).nbytes(), value_parts(o, static_cast<int64_t>(layer)).nbytes()});
  return sizes;
}

// A copy of a block's keys or values to rotate, and the numbers of a page.
int64_t scratch_of(const UniformCodec::Options& o) {
  const int64_t copy = o.block_tokens * std::max<int64_t>(o.k_dim, round_up(o.v_dim, 16));
  return copy + std::max(uniform_scratch_floats(shape_of_keys(o, 0)), uniform_scratch_floats(shape_of_values(o, 0)));
}

}  // namespace

UniformCodec::UniformCodec(const Options& options)
    : Codec(sizes_of(checked(options)), options.n_kv_heads, options.k_dim, options.v_dim, options.block_tokens,
            scratch_of(checked(options))),
      o_(options) {}

void UniformCodec::encode(const CodeBlock& block, const float* k, const float* v, float* scratch) const {
  const UniformKernels& kernel = kernels().uniform;
  const int64_t n_pages = o_.block_tokens / kPageTokens, half = o_.k_dim / 2;
  const int64_t k_floats = kPageTokens * o_.k_dim, v_stride = round_up(o_.v_dim, 16);
  float* copy = scratch;
  float* numbers = copy + o_.block_tokens * std::max<int64_t>(o_.k_dim, v_stride);
  if (o_.before_rotation || o_.hadamard) {
    std::memcpy(copy, k, static_cast<size_t>(n_pages * k_floats) * sizeof(float));
    for (int64_t page = 0; page < n_pages; ++page) {
      const int64_t position = block.position0 + page * kPageTokens;
      if (o_.before_rotation)
        kernel.rotate(copy + page * k_floats, o_.k_dim, block.rotary.cos + position * half,
                      block.rotary.sin + position * half, block.rotary.style, true);
      if (o_.hadamard) kernel.hadamard(copy + page * k_floats, o_.k_dim, kPageTokens, kPageTokens, false);
    }
    k = copy;
  }
  encode_parts(key_parts(o_, block.layer), k, block.k, numbers);
  if (o_.hadamard) {
    std::memcpy(copy, v, static_cast<size_t>(o_.block_tokens * v_stride) * sizeof(float));
    kernel.hadamard(copy, o_.block_tokens, o_.v_dim, v_stride, true);
    v = copy;
  }
  encode_parts(value_parts(o_, block.layer), v, block.v, numbers);
}

void UniformCodec::decode_keys(const CodeBlock& block, int64_t page, float* k_page, float* scratch) const {
  const UniformKernels& kernel = kernels().uniform;
  decode_part(key_parts(o_, block.layer), block.k, page, k_page, scratch);
  if (o_.hadamard) kernel.hadamard(k_page, o_.k_dim, kPageTokens, kPageTokens, false);
  if (o_.before_rotation) {
    const int64_t offset = (block.position0 + page * kPageTokens) * (o_.k_dim / 2);
    kernel.rotate(k_page, o_.k_dim, block.rotary.cos + offset, block.rotary.sin + offset, block.rotary.style, false);
  }
}

void UniformCodec::decode_values(const CodeBlock& block, int64_t page, float* v_page, float* scratch) const {
  decode_part(value_parts(o_, block.layer), block.v, page, v_page, scratch);
  if (o_.hadamard) kernels().uniform.hadamard(v_page, kPageTokens, o_.v_dim, round_up(o_.v_dim, 16), true);
}

}  // namespace capax
