// Python face of native/norms.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels.h"

namespace nb = nanobind;

namespace capax {
namespace {

using Result = nb::ndarray<nb::numpy, float>;

// A new array of the shape of x.
Result like(const Floats& x) {
  std::vector<size_t> shape(x.ndim());
  for (size_t i = 0; i < x.ndim(); ++i) shape[i] = x.shape(i);
  auto data = std::make_unique<float[]>(x.size() + 1);
  nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  float* first = data.release();
  return Result(first, shape.size(), shape.data(), owner);
}

void check_same_shape(const Floats& x, const Floats& y, const char* names) {
  bool same = x.ndim() == y.ndim();
  for (size_t i = 0; same && i < x.ndim(); ++i) same = x.shape(i) == y.shape(i);
  check(same, std::string(names) + " need the same shape");
}

Result exp_of(const Floats& x) {
  Result out = like(x);
  NativeSection native;
  kernels().norms.exp(x.data(), static_cast<int64_t>(x.size()), out.data());
  return out;
}

Result softmax_of(const Floats& x) {
  const int64_t n = last_extent(x, "x");
  Result out = like(x);
  NativeSection native;
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); i += n)
    kernels().norms.softmax(x.data() + i, n, out.data() + i);
  return out;
}

Result logsumexp_of(const Floats& x) {
  const int64_t n = last_extent(x, "x");
  const size_t n_rows = x.size() / static_cast<size_t>(n);
  Result out = new_array<float>({n_rows});
  NativeSection native;
  for (size_t row = 0; row < n_rows; ++row)
    out.data()[row] = kernels().norms.logsumexp(x.data() + static_cast<int64_t>(row) * n, n);
  return out;
}

Result rms_norm_of(const Floats& x, const Floats& weight, float eps) {
  const int64_t n = last_extent(x, "x");
  check(weight.ndim() == 1 && static_cast<int64_t>(weight.size()) == n,
        "weight has " + std::to_string(weight.size()) + " values but a row of x has " + std::to_string(n));
  Result out = like(x);
  NativeSection native;
  kernels().norms.rms_norm(x.data(), static_cast<int64_t>(x.size()) / n, n, weight.data(), eps, out.data());
  return out;
}

Result layer_norm_of(const Floats& x, const Floats& weight, const Floats& bias, float eps) {
  const int64_t n = last_extent(x, "x");
  for (const Floats* row : {&weight, &bias})
    check(row->ndim() == 1 && static_cast<int64_t>(row->size()) == n,
          "weight and bias need " + std::to_string(n) + " values, as a row of x has");
  Result out = like(x);
  NativeSection native;
  kernels().norms.layer_norm(x.data(), static_cast<int64_t>(x.size()) / n, n, weight.data(), bias.data(), eps,
                             out.data());
  return out;
}

Result rope_of(const Floats& x, const Floats& cos, const Floats& sin, const std::string& style) {
  check(x.ndim() == 3, "x must be [n_tokens, n_heads, head_dim]");
  check(cos.ndim() == 2 && cos.shape(0) == x.shape(0), "cos must be [n_tokens, rope_dim / 2]");
  check_same_shape(cos, sin, "cos and sin");
  check(style == "half" || style == "interleaved", "style '" + style + "' is not 'half' or 'interleaved'");
  const int64_t n_heads = static_cast<int64_t>(x.shape(1)), head_dim = static_cast<int64_t>(x.shape(2));
  const int64_t half = static_cast<int64_t>(cos.shape(1));
  check(2 * half <= head_dim, "rope_dim " + std::to_string(2 * half) + " is larger than head_dim " + std::to_string(head_dim));
  Result out = like(x);
  NativeSection native;
  std::copy_n(x.data(), x.size(), out.data());
  for (int64_t t = 0; t < static_cast<int64_t>(x.shape(0)); ++t)
    kernels().norms.rope(out.data() + t * n_heads * head_dim, n_heads, head_dim, 2 * half, cos.data() + t * half,
                         sin.data() + t * half, style == "half" ? RopeStyle::half : RopeStyle::interleaved);
  return out;
}

Result swiglu_of(const Floats& gate, const Floats& up) {
  check_same_shape(gate, up, "gate and up");
  Result out = like(gate);
  NativeSection native;
  kernels().norms.swiglu(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data());
  return out;
}

Result gelu_of(const Floats& x) {
  Result out = like(x);
  NativeSection native;
  kernels().norms.gelu(x.data(), static_cast<int64_t>(x.size()), out.data());
  return out;
}

Result add_of(const Floats& x, const Floats& y) {
  check_same_shape(x, y, "x and y");
  Result out = like(x);
  NativeSection native;
  std::copy_n(x.data(), x.size(), out.data());
  kernels().norms.add(out.data(), y.data(), static_cast<int64_t>(x.size()));
  return out;
}

}  // namespace

void bind_norms(nb::module_& m) {
  m.def("exp", &exp_of, nb::arg("x"), "exp of every element; float32.");
  m.def("softmax", &softmax_of, nb::arg("x"), "Softmax over the last axis; float32.");
  m.def("logsumexp", &logsumexp_of, nb::arg("x"), "log(sum(exp(row))) per row of the last axis; float32 [rows].");
  m.def("rms_norm", &rms_norm_of, nb::arg("x"), nb::arg("weight"), nb::arg("eps"),
        "x / sqrt(mean(x^2) + eps) * weight over the last axis; weight: [n].");
  m.def("layer_norm", &layer_norm_of, nb::arg("x"), nb::arg("weight"), nb::arg("bias"), nb::arg("eps"),
        "(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; weight, bias: [n].");
  m.def("rope", &rope_of, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("style"),
        "Rotated copy of x [n_tokens, n_heads, head_dim]; cos, sin: [n_tokens, rope_dim / 2] of each token's "
        "position; style 'half' or 'interleaved'.");
  m.def("swiglu", &swiglu_of, nb::arg("gate"), nb::arg("up"), "silu(gate) * up, element by element.");
  m.def("gelu", &gelu_of, nb::arg("x"), "x Phi(x), element by element.");
  m.def("add", &add_of, nb::arg("x"), nb::arg("y"), "x + y, element by element.");
}

}  // namespace capax
