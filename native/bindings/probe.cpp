// The machine's rooflines for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <stdexcept>
#include <utility>

#include "bindings/bindings.h"
#include "probe/probe.h"

namespace nb = nanobind;

namespace capax {

namespace {

void check(int threads, double seconds) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
  if (!(seconds > 0.0 && seconds <= 60.0)) throw std::invalid_argument("seconds must be above 0 and at most 60");
}

std::pair<double, double> best_and_median(const Measured& measured) { return {measured.best, measured.median}; }

}  // namespace

void bind_probe(nb::module_& m) {
  m.def(
      "probe_read_gbps",
      [](int64_t nbytes, int threads, double seconds) {
        check(threads, seconds);
        if (nbytes < 1024 || nbytes > (int64_t{1} << 40))
          throw std::invalid_argument("nbytes must be 1024 to 2^40");
        NativeSection native;
        return best_and_median(probe_read_gbps(nbytes, threads, seconds));
      },
      nb::arg("nbytes"), nb::arg("threads"), nb::arg("seconds") = 0.5,
      "(best, median) GB/s, 1e9 bytes, of reading nbytes of memory split among threads.");
  m.def(
      "probe_int8_gmacs",
      [](int threads, double seconds) {
        check(threads, seconds);
        NativeSection native;
        return best_and_median(probe_int8_gmacs(threads, seconds));
      },
      nb::arg("threads"), nb::arg("seconds") = 0.2,
      "(best, median) 1e9 int8 multiply-adds per second, operands in registers.");
  m.def(
      "probe_f32_gflops",
      [](int threads, double seconds) {
        check(threads, seconds);
        NativeSection native;
        return best_and_median(probe_f32_gflops(threads, seconds));
      },
      nb::arg("threads"), nb::arg("seconds") = 0.2,
      "(best, median) 1e9 float32 operations per second; a fused multiply-add counts two.");
}

}  // namespace capax
