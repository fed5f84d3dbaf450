// Python face of landmark attention.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>

#include "attention/landmark.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels.h"

namespace nb = nanobind;

namespace capax {
namespace {

LandmarkShape shape_of(const Floats& q, int64_t n_kv_heads, int64_t block, float scale, const Floats& cos,
                       const Floats& sin, const std::string& style) {
  check(q.ndim() == 3, "q must be [n_tokens, n_heads, head_dim]");
  LandmarkShape s{};
  s.n_heads = static_cast<int64_t>(q.shape(1));
  s.head_dim = static_cast<int64_t>(q.shape(2));
  s.n_kv_heads = n_kv_heads;
  s.block = block;
  s.scale = scale;
  check(n_kv_heads >= 1 && s.n_heads % n_kv_heads == 0, "the KV heads must divide the heads of q");
  check(block >= 2, "a block needs a regular token and a landmark");
  check(s.head_dim >= 2 && s.head_dim % 2 == 0, "head_dim must be even");
  check(style == "half" || style == "interleaved", "style '" + style + "' is not 'half' or 'interleaved'");
  for (const Floats* table : {&cos, &sin})
    check(table->ndim() == 2 && static_cast<int64_t>(table->shape(1)) * 2 == s.head_dim &&
              table->shape(0) == cos.shape(0),
          "cos and sin must be [n_positions, head_dim / 2]");
  s.cos = cos.data();
  s.sin = sin.data();
  s.style = style == "half" ? RopeStyle::half : RopeStyle::interleaved;
  return s;
}

void check_positions(const Ints& positions, int64_t below, const char* name) {
  for (size_t i = 0; i < positions.size(); ++i)
    check(positions.data()[i] >= 0 && positions.data()[i] < below,
          std::string(name) + " has " + std::to_string(positions.data()[i]) + ", outside 0.." + std::to_string(below - 1));
}

nb::ndarray<nb::numpy, float> scores_of(const Floats& q, const Floats& landmarks, const Ints& positions, float scale,
                                        const Floats& cos, const Floats& sin, const std::string& style) {
  check(landmarks.ndim() == 3, "landmarks must be [n_kv_heads, n_rows, head_dim]");
  const LandmarkShape s = shape_of(q, static_cast<int64_t>(landmarks.shape(0)), 2, scale, cos, sin, style);
  check(static_cast<int64_t>(landmarks.shape(2)) == s.head_dim, "landmarks and q need the same head_dim");
  check(positions.ndim() == 1 && positions.shape(0) <= landmarks.shape(1), "there are more positions than landmarks");
  check_positions(positions, static_cast<int64_t>(cos.shape(0)), "positions");
  const int64_t t = static_cast<int64_t>(q.shape(0)), n = static_cast<int64_t>(positions.size());
  const int64_t stride = static_cast<int64_t>(landmarks.shape(1)) * s.head_dim;
  auto out = new_array<float>({q.shape(0), q.shape(1), positions.size()});
  const auto scratch = std::make_unique<float[]>(static_cast<size_t>(s.head_dim));
  NativeSection native;
  for (int64_t i = 0; i < t * s.n_heads; ++i)
    landmark_scores_row(s, q.data() + i * s.head_dim, landmarks.data() + s.kv_head(i % s.n_heads) * stride,
                        positions.data(), n, scratch.get(), out.data() + i * n);
  return out;
}

nb::tuple attend_of(const Floats& q, const Ints& rows, const Floats& chunk_k, const Floats& chunk_v,
                    const Floats& records, const Ints& slots, const Ints& bases, float scale, const Floats& cos,
                    const Floats& sin, const std::string& style, int64_t block, int64_t first) {
  check(chunk_k.ndim() == 3 && chunk_v.ndim() == 3 && chunk_k.size() == chunk_v.size(),
        "chunk_k and chunk_v must be [n_kv_heads, n_rows, head_dim]");
  const LandmarkShape s = shape_of(q, static_cast<int64_t>(chunk_k.shape(0)), block, scale, cos, sin, style);
  const int64_t t = static_cast<int64_t>(q.shape(0)), stride = static_cast<int64_t>(chunk_k.shape(1));
  check(static_cast<int64_t>(chunk_k.shape(2)) == s.head_dim, "chunk_k and q need the same head_dim");
  check(rows.ndim() == 1 && static_cast<int64_t>(rows.size()) == t, "rows must have one place per token of q");
  check_positions(rows, stride, "rows");
  check(slots.ndim() == 3 && slots.shape(0) == q.shape(0) && slots.shape(1) == q.shape(1),
        "slots must be [n_tokens, n_heads, n_chosen]");
  check(bases.ndim() == 3 && bases.size() == slots.size(), "bases must have the shape of slots");
  check(records.ndim() == 4 && records.shape(1) == 2 && static_cast<int64_t>(records.shape(2)) == block &&
            static_cast<int64_t>(records.shape(3)) == s.head_dim,
        "records must be [n_records, 2, block, head_dim]");
  check(first >= 0, "first is negative");
  const int64_t n_chosen = static_cast<int64_t>(slots.shape(2)), n_records = static_cast<int64_t>(records.shape(0));
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots.data()[i] < 0) continue;
    check(slots.data()[i] < n_records, "slots has " + std::to_string(slots.data()[i]) + " but there are " +
                                           std::to_string(n_records) + " records");
    check(bases.data()[i] >= 0 && bases.data()[i] + block <= static_cast<int64_t>(cos.shape(0)),
          "bases has " + std::to_string(bases.data()[i]) + ", outside the rotary tables");
  }
  auto out = new_array<float>({q.shape(0), q.shape(1), q.shape(2)});
  auto n_read = new_array<int32_t>({q.shape(0), q.shape(1)});
  const LandmarkChunk chunk = {chunk_k.data(), chunk_v.data(), stride, first};
  const int64_t most = t ? *std::max_element(rows.data(), rows.data() + t) : 0;
  const auto scratch = std::make_unique<float[]>(static_cast<size_t>(landmark_scratch_floats(s, n_chosen, most)));
  {
    NativeSection native;
    for (int64_t i = 0; i < t * s.n_heads; ++i)
      n_read.data()[i] = static_cast<int32_t>(landmark_attend_row(
          s, i % s.n_heads, q.data() + i * s.head_dim, records.data(), slots.data() + i * n_chosen,
          bases.data() + i * n_chosen, n_chosen, chunk, rows.data()[i / s.n_heads], scratch.get(),
          out.data() + i * s.head_dim));
  }
  return nb::make_tuple(out, n_read);
}

}  // namespace

void bind_landmark(nb::module_& m) {
  m.def("landmark_scores", &scores_of, nb::arg("q"), nb::arg("landmarks"), nb::arg("positions").noconvert(),
        nb::arg("scale"), nb::arg("cos"), nb::arg("sin"), nb::arg("style"),
        "Scores [n_tokens, n_heads, n] of q [n_tokens, n_heads, head_dim] (rotated) for the first n landmarks of "
        "[n_kv_heads, n_rows, head_dim] (not rotated) as if they stood at positions, int32 [n].");
  m.def("landmark_attend", &attend_of, nb::arg("q"), nb::arg("rows").noconvert(), nb::arg("chunk_k"),
        nb::arg("chunk_v"), nb::arg("records"), nb::arg("slots").noconvert(), nb::arg("bases").noconvert(),
        nb::arg("scale"), nb::arg("cos"), nb::arg("sin"), nb::arg("style"), nb::arg("block"), nb::arg("first") = 0,
        "Landmark attention of q [n_tokens, n_heads, head_dim] (rotated) at places rows of a chunk [n_kv_heads, "
        "n_rows, head_dim] (keys rotated), and to records [n_records, 2, block, head_dim] (keys not rotated) that "
        "slots [n_tokens, n_heads, n_chosen] choose (-1: none), their first tokens at positions bases. first: rows "
        "of the chunk before it do not exist. -> (out as q, keys read: int32 [n_tokens, n_heads]).");
}

}  // namespace capax
