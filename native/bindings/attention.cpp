// Python face of native/attention.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels.h"
#include "kv/codec.h"
#include "kv/bounded.h"

namespace nb = nanobind;

namespace capax {
namespace {

using Pool = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
constexpr int64_t kMaxPosition = int64_t{1} << 40;

KVType kv_type(const std::string& name) {
  if (name == "f32") return KVType::f32;
  if (name == "f16") return KVType::f16;
  if (name == "bf16") return KVType::bf16;
  if (name == "int8") return KVType::int8;
  throw std::invalid_argument("KV type '" + name + "' is not one of f32, f16, bf16, int8");
}

KVLayout make_layout(const std::string& type, int64_t n_kv_heads, int64_t k_dim, int64_t v_dim) {
  check(n_kv_heads >= 1 && n_kv_heads <= 4096, "n_kv_heads " + std::to_string(n_kv_heads) + " is not in 1..4096");
  for (int64_t dim : {k_dim, v_dim})
    check(dim >= 1 && dim <= kMaxHeadDim,
          "head dimension " + std::to_string(dim) + " is not in 1.." + std::to_string(kMaxHeadDim));
  return {kv_type(type), static_cast<int32_t>(n_kv_heads), static_cast<int32_t>(k_dim), static_cast<int32_t>(v_dim)};
}

// The view of one layer of one sequence, with every byte that positions 0..n_positions touch checked.
KVView make_view(const KVLayout& layout, const Pool& pool, int64_t offset, const Ints& page_table, int64_t n_positions) {
  const int64_t page_stride = static_cast<int64_t>(pool.shape(1)), n_pages = static_cast<int64_t>(pool.shape(0));
  check(offset >= 0 && offset % 64 == 0 && page_stride % 64 == 0,
        "offset " + std::to_string(offset) + " and page stride " + std::to_string(page_stride) + " must be multiples of 64");
  check(offset + layer_page_nbytes(layout) <= page_stride,
        "a layer page of " + std::to_string(layer_page_nbytes(layout)) + " bytes at offset " + std::to_string(offset) +
            " does not fit a page of " + std::to_string(page_stride) + " bytes");
  check(reinterpret_cast<uintptr_t>(pool.data()) % 4 == 0, "the pool must be aligned to 4 bytes");
  check(page_table.ndim() == 1, "page_table must be one-dimensional");
  const int64_t needed = (n_positions + kPageTokens - 1) / kPageTokens;
  check(needed <= static_cast<int64_t>(page_table.size()),
        "position " + std::to_string(n_positions - 1) + " needs " + std::to_string(needed) + " pages but page_table has " +
            std::to_string(page_table.size()));
  for (int64_t i = 0; i < needed; ++i)
    check(page_table.data()[i] >= 0 && page_table.data()[i] < n_pages,
          "page_table[" + std::to_string(i) + "] = " + std::to_string(page_table.data()[i]) + " is not in 0.." +
              std::to_string(n_pages - 1));
  return {layout, pool.data() + offset, page_stride, page_table.data()};
}

void check_rows(const Floats& x, int64_t n_heads, int64_t dim, const char* name) {
  check(x.ndim() == 3 && static_cast<int64_t>(x.shape(1)) == n_heads && static_cast<int64_t>(x.shape(2)) == dim,
        std::string(name) + " must be [n_tokens, " + std::to_string(n_heads) + ", " + std::to_string(dim) + "]");
}

// Queries [n_tokens, n_heads, k_dim] of the positions from position0 on.
void check_queries(const KVLayout& layout, const Floats& q, int64_t position0, float scale) {
  check(q.ndim() == 3 && q.shape(1) >= 1, "q must be [n_tokens, n_heads, k_dim]");
  const int64_t n_heads = static_cast<int64_t>(q.shape(1));
  check_rows(q, n_heads, layout.k_dim, "q");
  check(n_heads % layout.n_kv_heads == 0 && n_heads <= 65536,
        std::to_string(n_heads) + " query heads do not divide into " + std::to_string(layout.n_kv_heads) + " KV heads");
  check(position0 >= 0 && position0 <= kMaxPosition, "position0 " + std::to_string(position0) + " is out of range");
  check(std::isfinite(scale), "scale must be finite");
}

void kv_append(const KVLayout& layout, const Pool& pool, int64_t offset, const Ints& page_table, const Floats& k,
               const Floats& v, int64_t position0) {
  check_rows(k, layout.n_kv_heads, layout.k_dim, "k");
  check_rows(v, layout.n_kv_heads, layout.v_dim, "v");
  check(k.shape(0) == v.shape(0), "k and v need the same number of tokens");
  check(position0 >= 0 && position0 <= kMaxPosition, "position0 " + std::to_string(position0) + " is out of range");
  const int64_t n_tokens = static_cast<int64_t>(k.shape(0));
  const KVView view = make_view(layout, pool, offset, page_table, position0 + n_tokens);
  NativeSection native;
  kernels().attention.append(view, k.data(), layout.n_kv_heads * layout.k_dim, v.data(), layout.n_kv_heads * layout.v_dim,
                             n_tokens, position0, 0, layout.n_kv_heads);
}

struct FreeAligned {
  void operator()(float* p) const { std::free(p); }
};
using Scratch = std::unique_ptr<float[], FreeAligned>;

Scratch scratch_of(int64_t n_floats) {
  const size_t nbytes = (static_cast<size_t>(n_floats) * sizeof(float) + 63) / 64 * 64;
  float* p = static_cast<float*>(std::aligned_alloc(64, nbytes ? nbytes : 64));
  if (!p) throw std::bad_alloc();
  return Scratch(p);
}

nb::ndarray<nb::numpy, float> kv_attend(const KVLayout& layout, const Pool& pool, int64_t offset, const Ints& page_table,
                                        const Floats& q, int64_t position0, float scale, int64_t window, int64_t n_keys,
                                        int64_t tile_tokens, bool by_span, const Codec* codec, std::optional<Pool> codes) {
  check_queries(layout, q, position0, scale);
  const int64_t n_tokens = static_cast<int64_t>(q.shape(0)), n_heads = static_cast<int64_t>(q.shape(1));
  check(window >= 0 && window <= INT32_MAX, "window " + std::to_string(window) + " is not in 0..2147483647");
  check(n_keys == 0 || (n_keys >= position0 + n_tokens && n_keys <= kMaxPosition),
        "n_keys " + std::to_string(n_keys) + " must be 0 (causal) or at least the " + std::to_string(position0 + n_tokens) +
            " positions up to the last query");
  check(tile_tokens >= 1, "tile_tokens must be at least 1");

  auto out = new_array<float>({q.shape(0), q.shape(1), static_cast<size_t>(layout.v_dim)});
  Attend a{};
  a.view = make_view(layout, pool, offset, page_table, std::max(n_keys, position0 + n_tokens));
  a.q = q.data();
  a.ldq = n_heads * layout.k_dim;
  a.out = out.data();
  a.ldo = n_heads * layout.v_dim;
  a.n_tokens = n_tokens;
  a.position0 = position0;
  a.n_group = static_cast<int32_t>(n_heads / layout.n_kv_heads);
  a.window = static_cast<int32_t>(window);
  a.n_keys = n_keys;
  a.scale = scale;
  std::vector<int32_t> code_table;
  if (codec) {
    check(codes && codec->n_layers() == 1 && codec->block_tokens() == kPageTokens && codec->n_kv_heads() == layout.n_kv_heads &&
              codec->k_dim() == layout.k_dim && codec->v_dim() == layout.v_dim,
          "a codec of one layer of the same heads, with blocks of " + std::to_string(kPageTokens) + ", needs codes");
    check(static_cast<int64_t>(codes->shape(1)) == codec->page_nbytes() && reinterpret_cast<uintptr_t>(codes->data()) % 4 == 0,
          "codes must be [n_blocks, " + std::to_string(codec->page_nbytes()) + "], aligned to 4 bytes");
    check(n_keys == 0 && static_cast<int64_t>(codes->shape(0)) * kPageTokens <= position0 + n_tokens,
          "codes are of blocks that the last query sees");
    for (int32_t i = 0; i < static_cast<int32_t>(codes->shape(0)); ++i) code_table.push_back(i);
    a.codes = {codec, codes->data(), codec->page_nbytes(), code_table.data(), 0, {}, static_cast<int64_t>(codes->shape(0))};
  }
  const AttentionKernels& kernel = kernels().attention;
  const Scratch scratch = scratch_of(attend_scratch_floats(layout, a.n_group, codec));
  const int64_t span_stride = a.n_group * partial_floats(layout);
  int64_t most_spans = 0;
  for (int64_t t = 0; by_span && t < n_tokens; ++t) {
    const Range spans = visible_spans(a, position0 + t);
    most_spans = std::max(most_spans, spans.end - spans.begin);
  }
  const Scratch partials = scratch_of(most_spans * span_stride);

  NativeSection native;
  for (int32_t head = 0; head < layout.n_kv_heads; ++head) {
    if (!by_span) {
      for (int64_t t = 0; t < n_tokens; t += tile_tokens)
        kernel.attend(a, head, t, std::min(t + tile_tokens, n_tokens), scratch.get());
      continue;
    }
    for (int64_t t = 0; t < n_tokens; ++t) {
      const Range spans = visible_spans(a, position0 + t);
      for (int64_t span = spans.end - 1; span >= spans.begin; --span)
        kernel.attend_span(a, head, t, span, scratch.get(), partials.get() + (span - spans.begin) * span_stride);
      kernel.merge(a, head, t, partials.get(), span_stride);
    }
  }
  return out;
}

// Entries of a cache that keeps a bounded set of tokens.
void kv_keep(const KVLayout& layout, const Pool& pool, int64_t offset, const Ints& page_table, const Ints& keep,
             int64_t n_entries) {
  check(layout.type != KVType::int8, "entries are kept in a float type, not in int8");
  check(keep.ndim() == 2 && keep.shape(0) == static_cast<size_t>(layout.n_kv_heads),
        "keep must be [" + std::to_string(layout.n_kv_heads) + ", n_keep]");
  check(n_entries >= 0 && n_entries <= kMaxPosition, "n_entries " + std::to_string(n_entries) + " is out of range");
  const KVView view = make_view(layout, pool, offset, page_table, n_entries);
  const int64_t n_keep = static_cast<int64_t>(keep.shape(1));
  for (int32_t head = 0; head < layout.n_kv_heads; ++head)
    for (int64_t i = 0; i < n_keep; ++i) {
      const int32_t* row = keep.data() + head * n_keep;
      check(row[i] >= (i ? row[i - 1] + 1 : 0) && row[i] < n_entries,
            "keep[" + std::to_string(head) + "][" + std::to_string(i) + "] = " + std::to_string(row[i]) +
                " must ascend strictly below " + std::to_string(n_entries));
    }
  NativeSection native;
  for (int32_t head = 0; head < layout.n_kv_heads; ++head) keep_entries(view, head, keep.data() + head * n_keep, n_keep);
}

void kv_add_attention(const KVLayout& layout, const Pool& pool, int64_t offset, const Ints& page_table, const Floats& q,
                      int64_t entry0, float scale, const MutableFloats& weights) {
  check(layout.type != KVType::int8, "entries are kept in a float type, not in int8");
  check_queries(layout, q, entry0, scale);
  const int64_t n_heads = static_cast<int64_t>(q.shape(1));
  const int64_t n_entries = entry0 + static_cast<int64_t>(q.shape(0));
  check(weights.ndim() == 2 && weights.shape(0) == static_cast<size_t>(layout.n_kv_heads) &&
            static_cast<int64_t>(weights.shape(1)) >= n_entries,
        "weights must be [" + std::to_string(layout.n_kv_heads) + ", " + std::to_string(n_entries) + " or more]");
  Attend a{};
  a.view = make_view(layout, pool, offset, page_table, n_entries);
  a.q = q.data();
  a.ldq = n_heads * layout.k_dim;
  a.n_tokens = static_cast<int64_t>(q.shape(0));
  a.position0 = entry0;
  a.n_group = static_cast<int32_t>(n_heads / layout.n_kv_heads);
  a.scale = scale;
  NativeSection native;
  for (int32_t head = 0; head < layout.n_kv_heads; ++head)
    add_attention(a, head, weights.data() + head * static_cast<int64_t>(weights.shape(1)));
}

// Attention over one span of keys whose pages pass by, merged into what the spans before gave.
void kv_attend_span(const KVLayout& layout, const Pool& pool, const Ints& pages, const Floats& q, int64_t position0,
                    float scale, int64_t window, int64_t span, const MutableFloats& state) {
  constexpr int64_t kSpanPages = kSpanTokens / kPageTokens;
  check_queries(layout, q, position0, scale);
  const int64_t n_tokens = static_cast<int64_t>(q.shape(0)), n_heads = static_cast<int64_t>(q.shape(1));
  check(window >= 0 && window <= INT32_MAX, "window " + std::to_string(window) + " is not in 0..2147483647");
  check(span >= 0 && span <= kMaxPosition / kSpanTokens, "span " + std::to_string(span) + " is out of range");
  const int64_t ld = partial_floats(layout);
  check(state.ndim() == 3 && state.shape(0) == q.shape(0) && state.shape(1) == q.shape(1) &&
            static_cast<int64_t>(state.shape(2)) == ld,
        "state must be [n_tokens, n_heads, " + std::to_string(ld) + "]");
  make_view(layout, pool, 0, pages, kSpanTokens);  // checks
  std::vector<int32_t> table(static_cast<size_t>((span + 1) * kSpanPages));
  std::copy_n(pages.data(), kSpanPages, table.end() - kSpanPages);

  Attend a{};
  a.view = {layout, pool.data(), static_cast<int64_t>(pool.shape(1)), table.data()};
  a.q = q.data();
  a.ldq = n_heads * layout.k_dim;
  a.n_tokens = n_tokens;
  a.position0 = position0;
  a.n_group = static_cast<int32_t>(n_heads / layout.n_kv_heads);
  a.window = static_cast<int32_t>(window);
  a.scale = scale;
  const int64_t group_floats = a.n_group * ld;
  const Scratch scratch = scratch_of(attend_scratch_floats(layout, a.n_group, nullptr));
  const Scratch both = scratch_of(2 * group_floats), out = scratch_of(a.n_group * layout.v_dim);
  Attend two = a;  // merges two spans of bidirectional attention
  two.n_keys = 2 * kSpanTokens;
  two.window = 0;
  two.out = out.get();

  const AttentionKernels& kernel = kernels().attention;
  NativeSection native;
  for (int32_t head = 0; head < layout.n_kv_heads; ++head) {
    two.out = out.get() - head * a.n_group * layout.v_dim;
    for (int64_t t = 0; t < n_tokens; ++t) {
      const Range spans = visible_spans(a, position0 + t);
      if (span < spans.begin || span >= spans.end) continue;
      float* rows = state.data() + (t * n_heads + head * a.n_group) * ld;
      if (span == spans.begin) {
        kernel.attend_span(a, head, t, span, scratch.get(), rows);
        continue;
      }
      std::copy_n(rows, group_floats, both.get());
      kernel.attend_span(a, head, t, span, scratch.get(), both.get() + group_floats);
      kernel.merge(two, head, 0, both.get(), group_floats);
      std::copy_n(both.get(), group_floats, rows);
    }
  }
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("SPAN_TOKENS") = kSpanTokens;
  nb::class_<KVLayout>(m, "KVLayout", "What one page (64 positions) of one layer of a KV cache looks like.")
      .def("__init__",
           [](KVLayout* self, const std::string& type, int64_t n_kv_heads, int64_t k_dim, int64_t v_dim) {
             new (self) KVLayout(make_layout(type, n_kv_heads, k_dim, v_dim));
           },
           nb::arg("type"), nb::arg("n_kv_heads"), nb::arg("k_dim"), nb::arg("v_dim"))
      .def_ro("n_kv_heads", &KVLayout::n_kv_heads)
      .def_ro("k_dim", &KVLayout::k_dim)
      .def_ro("v_dim", &KVLayout::v_dim)
      .def_prop_ro("layer_page_nbytes", [](const KVLayout& self) { return layer_page_nbytes(self); },
                   "Bytes of one page of one layer; a multiple of 64.");
  m.def("kv_append", &kv_append, nb::arg("layout"), nb::arg("pool").noconvert(), nb::arg("offset"),
        nb::arg("page_table").noconvert(), nb::arg("k"), nb::arg("v"), nb::arg("position0"),
        "Store k [n_tokens, n_kv_heads, k_dim] (rotated) and v [n_tokens, n_kv_heads, v_dim] at positions position0.. "
        "pool: uint8 [n_pages, page_stride], zeroed when allocated; offset: of the layer inside a page; "
        "page_table: int32, position // 64 -> page.");
  m.def("kv_attend", &kv_attend, nb::arg("layout"), nb::arg("pool").noconvert(), nb::arg("offset"),
        nb::arg("page_table").noconvert(), nb::arg("q"), nb::arg("position0"), nb::arg("scale"), nb::arg("window") = 0,
        nb::arg("n_keys") = 0, nb::arg("tile_tokens") = 1 << 20, nb::arg("by_span") = false,
        nb::arg("codec") = nb::none(), nb::arg("codes") = nb::none(),
        "Attention of q [n_tokens, n_heads, k_dim] at positions position0.. -> [n_tokens, n_heads, v_dim]. Causal, or "
        "bidirectional over n_keys keys. window 0: all keys. tile_tokens and by_span choose how the work is cut and "
        "never change a bit. codec, codes: the first blocks are read from uint8 [n_blocks, codec.page_nbytes].");
  m.def("kv_keep", &kv_keep, nb::arg("layout"), nb::arg("pool").noconvert(), nb::arg("offset"),
        nb::arg("page_table").noconvert(), nb::arg("keep").noconvert(), nb::arg("n_entries"),
        "Entry i of head h becomes what entry keep[h, i] was. keep: int32 [n_kv_heads, n_keep], ascending in a head.");
  m.def("kv_add_attention", &kv_add_attention, nb::arg("layout"), nb::arg("pool").noconvert(), nb::arg("offset"),
        nb::arg("page_table").noconvert(), nb::arg("q"), nb::arg("entry0"), nb::arg("scale"),
        nb::arg("weights").noconvert(),
        "weights[h, j] += the attention that q [n_tokens, n_heads, k_dim], the queries of entries entry0.., give to "
        "entry j. weights: float32 [n_kv_heads, n_entries or more], changed in place.");
  m.def("kv_attend_span", &kv_attend_span, nb::arg("layout"), nb::arg("pool").noconvert(), nb::arg("pages"), nb::arg("q"),
        nb::arg("position0"), nb::arg("scale"), nb::arg("window"), nb::arg("span"), nb::arg("state").noconvert(),
        "The part of causal attention over the 512 positions of `span`, whose 8 pages of the pool `pages` names (int32). "
        "state: float32 [n_tokens, n_heads, 16 + v_dim rounded up to 16]: m, l, 14 unused, then the weighted sum of "
        "values; what spans before gave goes in, merged with this one it comes out. Spans must be given in order; "
        "attention is sum / l after the last.");
}

}  // namespace capax
