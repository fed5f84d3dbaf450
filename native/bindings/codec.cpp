// Python face of the codecs of coded caches.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "attention/attention.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kv/codec.h"
#include "kv/uniform_codec.h"
#include "program/program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace capax {
namespace {

using Result = nb::ndarray<nb::numpy, float>;

Scratch scratch_of(int64_t n_floats) {
  Scratch scratch;
  scratch.reserve(std::max<int64_t>(n_floats, 1) * static_cast<int64_t>(sizeof(float)));
  return scratch;
}
float* floats(Scratch& scratch) { return reinterpret_cast<float*>(scratch.reserve(0)); }

// One head of one block, its codes in memory of its own, as bindings hand it to a codec.
struct LooseBlock {
  LooseBlock(const Codec& codec, int64_t layer, int32_t kv_head, int64_t position0, const Floats& cos,
             const Floats& sin, bool interleaved)
      : codec(codec), n_tokens(codec.block_tokens()), v_stride((codec.v_dim() + 15) / 16 * 16) {
    check(layer >= 0 && layer < codec.n_layers(),
          "layer " + std::to_string(layer) + " is not in 0.." + std::to_string(codec.n_layers() - 1));
    check(kv_head >= 0 && kv_head < codec.n_kv_heads(),
          "KV head " + std::to_string(kv_head) + " is not in 0.." + std::to_string(codec.n_kv_heads() - 1));
    check(position0 >= 0 && position0 % n_tokens == 0,
          "position " + std::to_string(position0) + " does not begin a block of " + std::to_string(n_tokens));
    for (const Floats* table : {&cos, &sin})
      check(table->ndim() == 2 && static_cast<int64_t>(table->shape(0)) >= position0 + n_tokens &&
                static_cast<int64_t>(table->shape(1)) == codec.k_dim() / 2,
            "rotary tables must be [n_positions, " + std::to_string(codec.k_dim() / 2) + "] and reach position " +
                std::to_string(position0 + n_tokens - 1));
    size = codec.size(layer);
    memory.reserve(size.k_nbytes + size.v_nbytes);
    scratch.reserve(std::max<int64_t>(codec.scratch_floats(), 1) * static_cast<int64_t>(sizeof(float)));
    block = {memory.reserve(0), memory.reserve(0) + size.k_nbytes, layer, kv_head, position0,
             {cos.data(), sin.data(), interleaved ? RopeStyle::interleaved : RopeStyle::half}};
  }
  void take(const nb::bytes& codes) {
    check(static_cast<int64_t>(codes.size()) == size.k_nbytes + size.v_nbytes,
          "codes have " + std::to_string(codes.size()) + " bytes; a head of a block has " +
              std::to_string(size.k_nbytes + size.v_nbytes));
    std::memcpy(block.k, codes.c_str(), codes.size());
  }

  const Codec& codec;
  int64_t n_tokens, v_stride;
  CodeSize size;
  CodeBlock block;
  Scratch memory, scratch;
};

nb::bytes encode(const Codec& codec, int64_t layer, int32_t kv_head, int64_t position0, const Floats& k,
                 const Floats& v, const Floats& cos, const Floats& sin, bool interleaved) {
  LooseBlock loose(codec, layer, kv_head, position0, cos, sin, interleaved);
  const int64_t n = loose.n_tokens, k_dim = codec.k_dim(), v_dim = codec.v_dim();
  check(k.ndim() == 2 && static_cast<int64_t>(k.shape(0)) == n && static_cast<int64_t>(k.shape(1)) == k_dim,
        "k must be [" + std::to_string(n) + ", " + std::to_string(k_dim) + "]");
  check(v.ndim() == 2 && static_cast<int64_t>(v.shape(0)) == n && static_cast<int64_t>(v.shape(1)) == v_dim,
        "v must be [" + std::to_string(n) + ", " + std::to_string(v_dim) + "]");
  Scratch keys = scratch_of(n * k_dim), values = scratch_of(n * loose.v_stride);
  std::memset(floats(values), 0, static_cast<size_t>(n * loose.v_stride) * sizeof(float));
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t d = 0; d < k_dim; ++d)
      floats(keys)[(t / kPageTokens * k_dim + d) * kPageTokens + t % kPageTokens] = k.data()[t * k_dim + d];
    std::memcpy(floats(values) + t * loose.v_stride, v.data() + t * v_dim, static_cast<size_t>(v_dim) * sizeof(float));
  }
  {
    NativeSection native;
    codec.encode(loose.block, floats(keys), floats(values), floats(loose.scratch));
  }
  return nb::bytes(reinterpret_cast<const char*>(loose.block.k), static_cast<size_t>(loose.size.k_nbytes + loose.size.v_nbytes));
}

std::pair<Result, Result> decode(const Codec& codec, int64_t layer, int32_t kv_head, int64_t position0,
                                 const nb::bytes& codes, const Floats& cos, const Floats& sin, bool interleaved) {
  LooseBlock loose(codec, layer, kv_head, position0, cos, sin, interleaved);
  loose.take(codes);
  const int64_t n = loose.n_tokens, k_dim = codec.k_dim(), v_dim = codec.v_dim();
  auto k = new_array<float>({static_cast<size_t>(n), static_cast<size_t>(k_dim)});
  auto v = new_array<float>({static_cast<size_t>(n), static_cast<size_t>(v_dim)});
  Scratch keys = scratch_of(kPageTokens * k_dim), values = scratch_of(kPageTokens * loose.v_stride);
  for (int64_t page = 0; page < n / kPageTokens; ++page) {
    NativeSection native;
    codec.decode_keys(loose.block, page, floats(keys), floats(loose.scratch));
    codec.decode_values(loose.block, page, floats(values), floats(loose.scratch));
    for (int64_t t = 0; t < kPageTokens; ++t) {
      const int64_t row = page * kPageTokens + t;
      for (int64_t d = 0; d < k_dim; ++d) k.data()[row * k_dim + d] = floats(keys)[d * kPageTokens + t];
      std::memcpy(v.data() + row * v_dim, floats(values) + t * loose.v_stride, static_cast<size_t>(v_dim) * sizeof(float));
    }
  }
  return {k, v};
}

Result score(const Codec& codec, int64_t layer, int32_t kv_head, int64_t position0, const nb::bytes& codes,
             const Floats& cos, const Floats& sin, bool interleaved, const Floats& q, bool use_tables) {
  LooseBlock loose(codec, layer, kv_head, position0, cos, sin, interleaved);
  loose.take(codes);
  check(codec.scores_codes(layer), "this codec decodes its keys and does not score codes");
  check(q.ndim() == 2 && q.shape(0) >= 1 && q.shape(0) <= 48 && static_cast<int64_t>(q.shape(1)) == codec.k_dim(),
        "q must be [1 to 48, " + std::to_string(codec.k_dim()) + "]");
  const int64_t n_rows = static_cast<int64_t>(q.shape(0)), n_table = codec.table_floats(layer);
  auto s = new_array<float>({q.shape(0), static_cast<size_t>(loose.n_tokens)});
  Scratch memory = scratch_of(n_rows * n_table);
  std::vector<const float*> rows, tables;
  NativeSection native;
  for (int64_t r = 0; r < n_rows; ++r) {
    rows.push_back(q.data() + r * codec.k_dim());
    tables.push_back(floats(memory) + r * n_table);
    if (n_table > 0) codec.prepare(layer, kv_head, rows.back(), floats(memory) + r * n_table);
  }
  for (int64_t page = 0; page < loose.n_tokens / kPageTokens; ++page)
    codec.score(loose.block, page, rows.data(), use_tables && n_table > 0 ? tables.data() : nullptr, n_rows,
                s.data() + page * kPageTokens, loose.n_tokens, floats(loose.scratch));
  return s;
}

}  // namespace

void bind_codec(nb::module_& m) {
  nb::class_<Codec>(m, "Codec", "Turns blocks of keys and values into codes and back.")
      .def_prop_ro("n_layers", &Codec::n_layers)
      .def_prop_ro("n_kv_heads", &Codec::n_kv_heads)
      .def_prop_ro("k_dim", &Codec::k_dim)
      .def_prop_ro("v_dim", &Codec::v_dim)
      .def_prop_ro("block_tokens", &Codec::block_tokens, "Tokens of a block: 64 or 128.")
      .def_prop_ro("page_nbytes", &Codec::page_nbytes, "Bytes of the codes of one block over all layers.")
      .def("encode", &encode, "layer"_a, "kv_head"_a, "position0"_a, "k"_a, "v"_a, "cos"_a, "sin"_a, "interleaved"_a,
           "The codes of one head of one block, of keys and then of values; k, v: float32 [block_tokens, dim].")
      .def("decode", &decode, "layer"_a, "kv_head"_a, "position0"_a, "codes"_a, "cos"_a, "sin"_a, "interleaved"_a,
           "What codes stand for: (k, v), float32 [block_tokens, dim] each.")
      .def("score", &score, "layer"_a, "kv_head"_a, "position0"_a, "codes"_a, "cos"_a, "sin"_a, "interleaved"_a, "q"_a,
           "use_tables"_a = true, "Dot products of q [n_rows, k_dim] with the keys, float32 [n_rows, block_tokens].");
  nb::class_<UniformCodec, Codec>(m, "UniformCodec", "Asymmetric uniform codes of 2, 3, 4 or 8 bits.")
      .def(
          "__init__",
          [](UniformCodec* self, const std::vector<int32_t>& k_bits, const std::vector<int32_t>& v_bits, int32_t n_kv_heads,
             int32_t k_dim, int32_t v_dim, int64_t block_tokens, bool k_by_token, bool v_by_token, int64_t group,
             bool before_rotation, bool hadamard) {
            new (self) UniformCodec({n_kv_heads, k_dim, v_dim, block_tokens, {k_bits, k_by_token, group},
                                     {v_bits, v_by_token, group}, before_rotation, hadamard});
          },
          "k_bits"_a, "v_bits"_a, "n_kv_heads"_a, "k_dim"_a, "v_dim"_a, "block_tokens"_a, "k_by_token"_a, "v_by_token"_a,
          "group"_a, "before_rotation"_a = false, "hadamard"_a = false,
          "bits: of each layer. by_token: a group is `group` channels of a token, else a channel of the block.");
}

}  // namespace capax
