// Python face of native/coding.
#include "coding/frequencies.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace nb = nanobind;

namespace capax {
namespace {

constexpr int64_t kMaxSymbols = int64_t{1} << 24;  // far below 2^30: probabilities keep 6 bits and more

int64_t n_symbols(const Floats& logits, size_t n_axes) {
  check(logits.ndim() == n_axes, n_axes == 1 ? "logits must be [vocab_size]" : "logits must be [rows, vocab_size]");
  const int64_t n = last_extent(logits, "logits");
  check(n <= kMaxSymbols, "logits have " + std::to_string(n) + " symbols, at most 2^24 can be coded");
  return n;
}

void check_finite(bool finite) { check(finite, "the logits are not finite"); }

nb::ndarray<nb::numpy, uint32_t> intervals_of(const Floats& logits, const Ints& symbols) {
  const int64_t n = n_symbols(logits, 2);
  const size_t n_rows = logits.shape(0);
  check(symbols.ndim() == 1 && symbols.size() == n_rows, "symbols must be [rows]");
  for (size_t row = 0; row < n_rows; ++row)
    check(symbols.data()[row] >= 0 && symbols.data()[row] < n,
          "symbol " + std::to_string(symbols.data()[row]) + " is outside the vocabulary of " + std::to_string(n));
  auto out = new_array<uint32_t>({n_rows, 2});
  bool finite = true;
  {
    NativeSection native;
    Frequencies frequencies;
    for (size_t row = 0; row < n_rows && finite; ++row) {
      finite = frequencies.take(logits.data() + static_cast<int64_t>(row) * n, n);
      if (!finite) break;
      const Interval interval = frequencies.of(symbols.data()[row]);
      out.data()[2 * row] = interval.low;
      out.data()[2 * row + 1] = interval.width;
    }
  }
  check_finite(finite);
  return out;
}

nb::tuple find_symbol(const Floats& logits, uint32_t target) {
  const int64_t n = n_symbols(logits, 1);
  check(target < kFrequencyTotal, "target must be below 2^30");
  Interval interval{};
  int32_t symbol = 0;
  bool finite;
  {
    NativeSection native;
    Frequencies frequencies;
    finite = frequencies.take(logits.data(), n);
    if (finite) symbol = frequencies.find(target, &interval);
  }
  check_finite(finite);
  return nb::make_tuple(symbol, interval.low, interval.width);
}

}  // namespace

void bind_coding(nb::module_& m) {
  m.attr("FREQUENCY_BITS") = kFrequencyBits;
  m.def("intervals_of", &intervals_of, nb::arg("logits"), nb::arg("symbols"),
        "(low, width) of each row's symbol out of 2^30; logits [rows, vocab_size], symbols int32 [rows]; uint32 "
        "[rows, 2]. ValueError if a logit is not finite.");
  m.def("find_symbol", &find_symbol, nb::arg("logits"), nb::arg("target"),
        "(symbol, low, width) of the interval that contains target < 2^30; logits [vocab_size].");
}

}  // namespace capax
