// Python face of native/kv/retention_gate.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kv/retention_gate.h"
#include "quants/quants.h"

namespace nb = nanobind;

namespace capax {
namespace {

using Halves = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::vector<float> values(const Floats& x) { return {x.data(), x.data() + x.size()}; }

void make_gate(RetentionGate* self, const Halves& w1, const Floats& b1, const Floats& w2, const Floats& bias,
               bool normalise) {
  const int64_t width = static_cast<int64_t>(w1.shape(0)), d_model = static_cast<int64_t>(w1.shape(1));
  const int64_t n_heads = static_cast<int64_t>(bias.size());
  check(width >= 1 && d_model >= 1 && n_heads >= 1, "a gate needs at least one input, hidden unit and head");
  check(bias.ndim() == 1 && b1.ndim() == 1 && static_cast<int64_t>(b1.size()) == width,
        "b1 must be [" + std::to_string(width) + "] and bias [n_kv_heads]");
  check(w2.ndim() == 2 && static_cast<int64_t>(w2.shape(0)) == n_heads && static_cast<int64_t>(w2.shape(1)) == width,
        "w2 must be [" + std::to_string(n_heads) + ", " + std::to_string(width) + "]");
  new (self) RetentionGate{Weight::from_bytes(reinterpret_cast<const uint8_t*>(w1.data()), 2 * width * d_model,
                                              Encoding::BF16, width, d_model),
                           values(b1), values(w2), values(bias), normalise};
}

}  // namespace

void bind_retention(nb::module_& m) {
  nb::class_<RetentionGate>(m, "RetentionGate", "log beta of one layer's tokens, for each KV head (arXiv 2512.03324).")
      .def("__init__", &make_gate, nb::arg("w1").noconvert(), nb::arg("b1"), nb::arg("w2"), nb::arg("bias"),
           nb::arg("normalise"),
           "w1: bfloat16 as uint16 [width, d_model]; b1 [width]; w2 [n_kv_heads, width]; bias [n_kv_heads]; "
           "normalise: divide x by its root mean square first.")
      .def(
          "log_beta",
          [](const RetentionGate& self, const Floats& x) {
            check(x.ndim() == 2 && static_cast<int64_t>(x.shape(1)) == self.w1->n_in(),
                  "x must be [n_tokens, " + std::to_string(self.w1->n_in()) + "]");
            auto out = new_array<float>({self.bias.size(), x.shape(0)});
            NativeSection native;
            self.log_beta(x.data(), static_cast<int64_t>(x.shape(0)), out.data());
            return out;
          },
          nb::arg("x"), "x: [n_tokens, d_model] float32 -> new [n_kv_heads, n_tokens] float32, at most 0.")
      .def_prop_ro("nbytes", [](const RetentionGate& self) {
        return self.w1->nbytes() + static_cast<int64_t>((self.b1.size() + self.w2.size() + self.bias.size()) * 4);
      });
}

}  // namespace capax
