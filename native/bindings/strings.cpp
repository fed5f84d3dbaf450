// GGUF string arrays to Python lists: each string is its length (uint64, little-endian) and its
// bytes. A vocabulary and its merges are 98,000 strings; in Python they take longer than all
// weights. Every length is checked against the bytes that are there before it is used.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bindings/arrays.h"
#include "bindings/bindings.h"

namespace nb = nanobind;

namespace capax {
namespace {

// The bytes of an object for the time of a call.
class Buffer {
 public:
  explicit Buffer(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const char* data() const { return static_cast<const char*>(view_.buf); }
  uint64_t nbytes() const { return static_cast<uint64_t>(view_.len); }

 private:
  Py_buffer view_;
};

// The next string at `position`, which moves behind it; false if it does not fit.
bool next_string(const Buffer& buffer, uint64_t& position, uint64_t max_nbytes, const char** text, uint64_t* nbytes) {
  if (position > buffer.nbytes() || buffer.nbytes() - position < 8) return false;
  std::memcpy(nbytes, buffer.data() + position, 8);
  position += 8;
  if (*nbytes > max_nbytes || *nbytes > buffer.nbytes() - position) return false;
  *text = buffer.data() + position;
  position += *nbytes;
  return true;
}

int64_t skip_strings(nb::handle object, uint64_t position, uint64_t count, uint64_t max_nbytes) {
  const Buffer buffer(object);
  const char* text;
  uint64_t nbytes;
  for (uint64_t i = 0; i < count; ++i)
    if (!next_string(buffer, position, max_nbytes, &text, &nbytes)) return -1;
  return static_cast<int64_t>(position);
}

nb::object decode_strings(nb::handle object, uint64_t count) {
  const Buffer buffer(object);
  if (count > buffer.nbytes() / 8) throw nb::value_error("more strings than the bytes can hold");
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(count));
  if (!list) throw nb::python_error();
  nb::object result = nb::steal(list);
  uint64_t position = 0, nbytes;
  const char* text;
  for (uint64_t i = 0; i < count; ++i) {
    if (!next_string(buffer, position, UINT64_MAX, &text, &nbytes)) throw nb::value_error("a string ends beyond the bytes");
    PyObject* item = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(nbytes), "surrogateescape");
    if (!item) throw nb::python_error();
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), item);
  }
  return result;
}

nb::ndarray<nb::numpy, uint32_t> string_ends(nb::handle object, uint64_t count) {
  const Buffer buffer(object);
  if (count > buffer.nbytes() / 8) throw nb::value_error("more strings than the bytes can hold");
  if (buffer.nbytes() > UINT32_MAX) throw nb::value_error("the strings take 4 GiB or more");
  auto ends = new_array<uint32_t>({static_cast<size_t>(count)});
  uint64_t position = 0, nbytes;
  const char* text;
  for (uint64_t i = 0; i < count; ++i) {
    if (!next_string(buffer, position, UINT64_MAX, &text, &nbytes)) throw nb::value_error("a string ends beyond the bytes");
    ends.data()[i] = static_cast<uint32_t>(position);
  }
  return ends;
}

// Holds the garbage collector off for the time of a call that keeps the interpreter's lock and
// makes many objects without a cycle among them: counting them would make it visit every object
// of the process, which takes a tenth of the time to a first token.
class WithoutCollector {
 public:
  WithoutCollector() : was_enabled_(PyGC_Disable() != 0) {}
  ~WithoutCollector() {
    if (was_enabled_) PyGC_Enable();
  }
  WithoutCollector(const WithoutCollector&) = delete;
  WithoutCollector& operator=(const WithoutCollector&) = delete;

 private:
  bool was_enabled_;
};

nb::object decode_pairs(nb::handle object, uint64_t count) {
  const WithoutCollector without_collector;
  const Buffer buffer(object);
  if (count > buffer.nbytes() / 8) throw nb::value_error("more strings than the bytes can hold");
  PyObject* list = PyList_New(static_cast<Py_ssize_t>(count));
  if (!list) throw nb::python_error();
  nb::object result = nb::steal(list);
  uint64_t position = 0, nbytes;
  const char* text;
  for (uint64_t i = 0; i < count; ++i) {
    if (!next_string(buffer, position, UINT64_MAX, &text, &nbytes)) throw nb::value_error("a string ends beyond the bytes");
    const char* end = text + nbytes;
    const char* cut = std::find(text, end, ' ');  // no byte of a longer character is a space
    if (cut == end || std::find(cut + 1, end, ' ') != end)
      throw nb::value_error(("entry " + std::to_string(i) + " is not two pieces with one space between").c_str());
    PyObject* pair = PyTuple_New(2);
    PyObject* left = PyUnicode_DecodeUTF8(text, cut - text, "surrogateescape");
    PyObject* right = PyUnicode_DecodeUTF8(cut + 1, end - cut - 1, "surrogateescape");
    if (!pair || !left || !right) {
      Py_XDECREF(pair);
      Py_XDECREF(left);
      Py_XDECREF(right);
      throw nb::python_error();
    }
    PyTuple_SET_ITEM(pair, 0, left);
    PyTuple_SET_ITEM(pair, 1, right);
    PyObject_GC_UnTrack(pair);  // two strings: nothing to visit, ever
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), pair);
  }
  return result;
}

}  // namespace

void bind_strings(nb::module_& m) {
  m.def("skip_strings", &skip_strings, nb::arg("buffer"), nb::arg("position"), nb::arg("count"), nb::arg("max_nbytes"),
        "Position behind `count` strings, or -1 if one is longer than max_nbytes or ends beyond the buffer.");
  m.def("decode_strings", &decode_strings, nb::arg("buffer"), nb::arg("count"),
        "`count` strings from the start of the buffer as str; bytes that are not UTF-8 become surrogates.");
  m.def("string_ends", &string_ends, nb::arg("buffer"), nb::arg("count"),
        "Where each of `count` strings ends, uint32 [count]; the next one begins 8 bytes behind.");
  m.def("decode_pairs", &decode_pairs, nb::arg("buffer"), nb::arg("count"),
        "As `decode_strings`, each cut at its one space: a list of (left, right). ValueError naming the first that\n"
        "has not exactly one.");
}

}  // namespace capax
