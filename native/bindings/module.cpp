// The Python module. Each concern binds itself in a file of its own beside this one;
// only this folder knows Python. Bindings check dtype, contiguity and extent, then release
// the GIL around the native call.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <optional>

#include "bindings/bindings.h"
#include "kernels.h"

namespace nb = nanobind;

namespace {

struct FloatEnvironment {
  std::optional<capax::DefaultFloatEnvironment> entered;
};

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of capax.";
  // An object that outlives the interpreter, say in a thread that was still running, is no leak.
  nb::set_leak_warnings(false);
  m.def("isa", [] { return std::string(capax::kernels().isa); }, "Name of the chosen instruction set.");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::pair<std::string, std::string>> names;
        nb::list result;
        for (const capax::Kernels* table : capax::supported_kernels())
          result.append(nb::make_tuple(table->isa, table->description));
        return result;
      },
      "(name, needs) of each instruction set this CPU and build can run, the widest first.");
  m.def("select_isa", &capax::select_kernels, nb::arg("name"),
        "Choose an instruction set by name; False if it cannot run here.");
  m.def(
      "trim_heap",
      [] {
#ifdef __GLIBC__
        malloc_trim(0);
#endif
      },
      "Give what was freed on the heap back to the system, where the C library can.");
  nb::class_<FloatEnvironment>(m, "DefaultFloatEnvironment",
                               "A context in which the calling thread rounds to nearest and keeps denormals.")
      .def(nb::init<>())
      .def("__enter__", [](FloatEnvironment& self) { self.entered.emplace(); })
      .def("__exit__", [](FloatEnvironment& self, nb::args) { self.entered.reset(); });
  capax::bind_norms(m);
  capax::bind_attention(m);
  capax::bind_codec(m);
  capax::bind_landmark(m);
  capax::bind_uniform(m);
  capax::bind_weights(m);
  capax::bind_probe(m);
  capax::bind_program(m);
  capax::bind_sampling(m);
  capax::bind_strings(m);
  capax::bind_coding(m);
  capax::bind_retention(m);
  capax::bind_pq(m);
}
