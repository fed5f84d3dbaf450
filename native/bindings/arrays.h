// NumPy arrays at the border: what the bindings take, and how they make what they return.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

namespace capax {

using Floats = nanobind::ndarray<const float, nanobind::c_contig, nanobind::device::cpu>;
using MutableFloats = nanobind::ndarray<float, nanobind::c_contig, nanobind::device::cpu>;
using Ints = nanobind::ndarray<const int32_t, nanobind::c_contig, nanobind::device::cpu>;

// A new NumPy array that owns its memory.
template <class T>
nanobind::ndarray<nanobind::numpy, T> new_array(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t extent : shape) n *= extent;
  auto data = std::make_unique<T[]>(n ? n : 1);
  nanobind::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  T* first = data.release();
  return nanobind::ndarray<nanobind::numpy, T>(first, shape, owner);
}

// Raise ValueError with the message unless the condition holds.
inline void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

// A [rows, n] reading of an array: all leading axes are rows.
template <class Array>
int64_t last_extent(const Array& x, const char* name) {
  check(x.ndim() >= 1 && x.shape(x.ndim() - 1) >= 1, std::string(name) + " needs at least one value per row");
  return static_cast<int64_t>(x.shape(x.ndim() - 1));
}

}  // namespace capax
