// Python face of the uniform quantiser of native/kv.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace capax {
namespace {

using ByteRow = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ConstByteRow = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A block of tokens x channels, and where its parts lie: | codes | scales f16 | zeros f16 |.
struct UniformBlock {
  UniformShape shape;
  int64_t code_nbytes, numbers_nbytes;  // of the codes; of scales or zeros
};

UniformBlock block_of(int64_t n_tokens, int64_t n_channels, int64_t bits, bool by_token, int64_t group) {
  check(n_tokens >= 8 && n_tokens <= 1024 && n_tokens % 8 == 0,
        "a block of " + std::to_string(n_tokens) + " tokens is not a multiple of 8 in 8..1024");
  check(n_channels >= 1 && n_channels <= (1 << 20), std::to_string(n_channels) + " channels are not in 1..2^20");
  check(bits == 2 || bits == 3 || bits == 4 || bits == 8, std::to_string(bits) + " bits are not 2, 3, 4 or 8");
  if (by_token)
    check(group >= 1 && group <= n_channels && (group % 16 == 0 || group == n_channels),
          "a group of " + std::to_string(group) + " channels is not a multiple of 16 within the " +
              std::to_string(n_channels));
  else
    check(group >= 1 && n_tokens % group == 0,
          "a group of " + std::to_string(group) + " tokens does not divide a block of " + std::to_string(n_tokens));
  const UniformShape shape{n_tokens, (n_channels + 15) / 16 * 16, n_channels, group, static_cast<int32_t>(bits), by_token};
  return {shape, uniform_code_nbytes(shape), uniform_groups(shape) * static_cast<int64_t>(sizeof(uint16_t))};
}

int64_t nbytes_of(const UniformBlock& block) { return block.code_nbytes + 2 * block.numbers_nbytes; }

void check_bytes(int64_t nbytes, const UniformBlock& block) {
  check(nbytes == nbytes_of(block),
        "a block's codes have " + std::to_string(nbytes_of(block)) + " bytes, not " + std::to_string(nbytes));
}

void encode(const Floats& x, int64_t bits, bool by_token, int64_t group, ByteRow out) {
  check(x.ndim() == 2, "x must be [n_tokens, n_channels]");
  const int64_t n_tokens = static_cast<int64_t>(x.shape(0)), n_channels = static_cast<int64_t>(x.shape(1));
  const UniformBlock block = block_of(n_tokens, n_channels, bits, by_token, group);
  check_bytes(static_cast<int64_t>(out.size()), block);
  const int64_t n_cols = block.shape.n_cols;
  std::vector<float> padded;
  const float* page = x.data();
  if (n_cols != n_channels) {
    padded.resize(static_cast<size_t>(n_tokens * n_cols));
    for (int64_t t = 0; t < n_tokens; ++t) std::copy_n(page + t * n_channels, n_channels, padded.data() + t * n_cols);
    page = padded.data();
  }
  std::vector<float> scratch(static_cast<size_t>(uniform_scratch_floats(block.shape)));
  std::vector<uint16_t> numbers(static_cast<size_t>(block.numbers_nbytes));  // scales, then zeros
  uint16_t *scales = numbers.data(), *zeros = scales + numbers.size() / 2;
  const UniformKernels& kernel = kernels().uniform;
  NativeSection native;
  kernel.measure(block.shape, page, 1, scales, zeros, scratch.data());
  kernel.encode(block.shape, page, scales, zeros, out.data(), scratch.data());
  std::memcpy(out.data() + block.code_nbytes, numbers.data(), static_cast<size_t>(2 * block.numbers_nbytes));
}

nb::ndarray<nb::numpy, float> decode(const ConstByteRow& codes, int64_t n_tokens, int64_t n_channels, int64_t bits,
                                     bool by_token, int64_t group) {
  const UniformBlock block = block_of(n_tokens, n_channels, bits, by_token, group);
  check_bytes(static_cast<int64_t>(codes.size()), block);
  auto out = new_array<float>({static_cast<size_t>(n_tokens), static_cast<size_t>(n_channels)});
  const int64_t n_cols = block.shape.n_cols;
  std::vector<float> padded(n_cols == n_channels ? 0 : static_cast<size_t>(n_tokens * n_cols));
  float* page = padded.empty() ? out.data() : padded.data();
  std::vector<float> scratch(static_cast<size_t>(uniform_scratch_floats(block.shape)));
  std::vector<uint16_t> numbers(static_cast<size_t>(block.numbers_nbytes));
  const uint16_t *scales = numbers.data(), *zeros = scales + numbers.size() / 2;
  NativeSection native;
  std::memcpy(numbers.data(), codes.data() + block.code_nbytes, static_cast<size_t>(2 * block.numbers_nbytes));
  kernels().uniform.decode(block.shape, codes.data(), scales, zeros, page, scratch.data());
  for (int64_t t = 0; !padded.empty() && t < n_tokens; ++t)
    std::copy_n(page + t * n_cols, n_channels, out.data() + t * n_channels);
  return out;
}

}  // namespace

void bind_uniform(nb::module_& m) {
  m.def("uniform_nbytes",
        [](int64_t n_tokens, int64_t n_channels, int64_t bits, bool by_token, int64_t group) {
          const UniformBlock block = block_of(n_tokens, n_channels, bits, by_token, group);
          return nb::make_tuple(block.code_nbytes, 2 * block.numbers_nbytes);
        },
        "n_tokens"_a, "n_channels"_a, "bits"_a, "by_token"_a, "group"_a,
        "Bytes of a block's codes, and of its scales and zeros.");
  m.def("uniform_encode", &encode, "x"_a, "bits"_a, "by_token"_a, "group"_a, "out"_a.noconvert(),
        "Quantise a block [n_tokens, n_channels] into out: codes, then scales and zeros in f16. by_token: a group is "
        "`group` channels of a token; else `group` tokens of a channel.");
  m.def("uniform_decode", &decode, "codes"_a, "n_tokens"_a, "n_channels"_a, "bits"_a, "by_token"_a, "group"_a,
        "The block that codes stand for: float32 [n_tokens, n_channels].");
}

}  // namespace capax
