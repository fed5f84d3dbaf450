// Weights and encodings for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "bindings/bindings.h"
#include "kernels.h"
#include "matmul/weight.h"
#include "parallel/team.h"
#include "quants/quants.h"

namespace nb = nanobind;

namespace capax {

namespace {

using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<nb::numpy, float>;

// A new numpy array that owns its memory.
FloatArray new_floats(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (const size_t extent : shape) n *= extent;
  std::unique_ptr<float[]> data(new float[n ? n : 1]);
  nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return FloatArray(data.release(), shape, owner);
}

// A buffer of bytes that Python keeps alive for the length of a call.
class BytesView {
 public:
  explicit BytesView(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  }
  ~BytesView() { PyBuffer_Release(&view_); }
  BytesView(const BytesView&) = delete;
  BytesView& operator=(const BytesView&) = delete;
  const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
  int64_t nbytes() const { return view_.len; }

 private:
  Py_buffer view_;
};

Residency residency_named(const std::string& name) {
  if (name == "packed") return Residency::Packed;
  if (name == "streamed") return Residency::Streamed;
  throw std::invalid_argument("residency '" + name + "' is not 'packed' or 'streamed'");
}

// 64-byte aligned bytes for the length of a call.
struct AlignedBytes {
  explicit AlignedBytes(int64_t nbytes)
      : data(static_cast<uint8_t*>(::operator new(static_cast<size_t>(nbytes + 64), std::align_val_t{64}))) {}
  ~AlignedBytes() { ::operator delete(data, std::align_val_t{64}); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  uint8_t* data;
};

// Checks that x is [T, n_in], quantises it when the encoding is integer, and runs groups
// [g_begin, g_end) into y.
void run_matmul(const Weight& w, const FloatRows& x, int64_t g_begin, int64_t g_end, float* y, bool accumulate) {
  if (static_cast<int64_t>(x.shape(1)) != w.n_in())
    throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " columns, but the weight takes " +
                                std::to_string(w.n_in()) + " inputs");
  if (g_begin < 0 || g_begin > g_end || g_end > w.n_groups())
    throw std::invalid_argument("groups " + std::to_string(g_begin) + " to " + std::to_string(g_end) +
                                " are outside 0 to " + std::to_string(w.n_groups()));
  const int64_t n_tokens = static_cast<int64_t>(x.shape(0)), n_in = w.n_in();
  NativeSection native;
  const AlignedBytes quantised(w.is_integer() ? q8_rows_nbytes(n_tokens, n_in) : 0);
  const AlignedBytes scratch(w.scratch_nbytes());
  const Q8Rows rows = q8_rows_at(quantised.data, n_tokens, w.is_integer() ? n_in : 0);
  if (w.is_integer()) kernels().matmul.quantize_rows(x.data(), n_in, n_tokens, n_in, 0, n_tokens, rows);
  w.matmul_groups(g_begin, g_end, rows, x.data(), n_in, n_tokens, y, w.n_out(), accumulate, scratch.data);
}

FloatArray rows_of(const Weight& w, const std::vector<int64_t>& indices) {
  for (const int64_t index : indices)
    if (index < 0 || index >= w.n_out())
      throw nb::index_error(
          ("row " + std::to_string(index) + " is outside a weight of " + std::to_string(w.n_out()) + " rows").c_str());
  FloatArray out = new_floats({indices.size(), static_cast<size_t>(w.n_in())});
  NativeSection native;
  w.rows(indices.data(), static_cast<int64_t>(indices.size()), out.data());
  return out;
}

template <class T>
std::vector<int64_t> widened(const nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>& indices) {
  return {indices.data(), indices.data() + indices.shape(0)};
}

// n_elements in whole blocks, and the bytes they take.
int64_t encoded_nbytes(const EncodingInfo& info, int64_t n_elements) {
  if (n_elements < 0 || n_elements > (int64_t{1} << 48) || n_elements % info.block_size != 0)
    throw std::invalid_argument(std::to_string(n_elements) + " elements are not whole blocks of " +
                                std::to_string(info.block_size) + " as " + info.name + " needs");
  return n_elements / info.block_size * info.block_nbytes;
}

// One call for all weights of a model: a thread that came back to Python after each of them would
// wait for the interpreter's lock, which whoever builds the tokenizer meanwhile holds for milliseconds.
void pack_weights(const std::vector<std::shared_ptr<Weight>>& weights, int n_threads) {
  constexpr int64_t kPieceNbytes = 512 * 1024;
  struct Piece {
    Weight* weight;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  for (const auto& weight : weights) {
    const int64_t n = weight->n_groups();
    const int64_t step = std::max<int64_t>(1, n * kPieceNbytes / std::max<int64_t>(1, weight->file_nbytes()));
    if (weight->residency() == Residency::Packed)
      for (int64_t begin = 0; begin < n; begin += step) pieces.push_back({weight.get(), begin, std::min(n, begin + step)});
  }
  NativeSection native;
  std::atomic<size_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  Team team(n_threads);
  team.run([&](int) {
    for (size_t i; (i = next.fetch_add(1)) < pieces.size();) {
      try {
        pieces[i].weight->pack_range(pieces[i].begin, pieces[i].end);
      } catch (...) {
        std::lock_guard<std::mutex> lock(error_mutex);
        if (!error) error = std::current_exception();
        next.store(pieces.size());
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::exception<WeightReadError>(m, "WeightReadError", PyExc_OSError);

  nb::class_<WeightArena>(m, "WeightArena",
                          "A region of memory, on huge pages where possible, that weights are packed into.")
      .def(nb::init<int64_t>(), nb::arg("nbytes"))
      .def_prop_ro("nbytes", &WeightArena::nbytes)
      .def_prop_ro("used", &WeightArena::used);

  nb::class_<Weight>(m, "Weight", "An encoded matrix [n_out, n_in].")
      .def_static(
          "from_file",
          [](const std::string& path, int64_t offset, int64_t nbytes, const std::string& encoding, int64_t n_out,
             int64_t n_in, const std::string& residency, std::shared_ptr<WeightArena> arena, bool pack) {
            // Opening is short, and giving the lock away would mean to wait for it again.
            auto weight = Weight::open(path, offset, nbytes, encoding_info(encoding).encoding, n_out, n_in,
                                       residency_named(residency), std::move(arena));
            if (pack) {
              NativeSection native;
              weight->pack_range(0, weight->n_groups());
            }
            return weight;
          },
          nb::arg("path"), nb::arg("offset"), nb::arg("nbytes"), nb::arg("encoding"), nb::arg("n_out"),
          nb::arg("n_in"), nb::arg("residency") = "packed", nb::arg("arena") = nb::none(), nb::arg("pack") = true,
          "Read bytes [offset, offset + nbytes) of a file. residency: 'packed' (in memory, in the kernels' layout)\n"
          "or 'streamed' (read at every use). Sizes that disagree raise ValueError, an unreadable or short file\n"
          "WeightReadError (an OSError). pack=False leaves the reading and packing to `pack_weights`.")
      .def_static(
          "from_bytes",
          [](nb::handle data, const std::string& encoding, int64_t n_out, int64_t n_in,
             std::shared_ptr<WeightArena> arena) {
            const BytesView bytes(data);
            NativeSection native;
            return Weight::from_bytes(bytes.data(), bytes.nbytes(), encoding_info(encoding).encoding, n_out, n_in,
                                      std::move(arena));
          },
          nb::arg("data"), nb::arg("encoding"), nb::arg("n_out"), nb::arg("n_in"), nb::arg("arena") = nb::none(),
          "Pack the rows in a bytes-like object, laid out as in a GGUF file.")
      .def(
          "matmul",
          [](const Weight& w, const FloatRows& x) {
            FloatArray y = new_floats({x.shape(0), static_cast<size_t>(w.n_out())});
            run_matmul(w, x, 0, w.n_groups(), y.data(), false);
            return y;
          },
          nb::arg("x"), "x: [T, n_in] float32 -> new [T, n_out] float32, x times the transpose of this matrix.")
      .def(
          "matmul_groups",
          [](const Weight& w, const FloatRows& x,
             nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu> y, int64_t g_begin, int64_t g_end,
             bool accumulate) {
            if (y.shape(0) != x.shape(0) || static_cast<int64_t>(y.shape(1)) != w.n_out())
              throw std::invalid_argument("y must be [" + std::to_string(x.shape(0)) + ", " +
                                          std::to_string(w.n_out()) + "]");
            run_matmul(w, x, g_begin, g_end, y.data(), accumulate);
          },
          nb::arg("x"), nb::arg("y").noconvert(), nb::arg("g_begin"), nb::arg("g_end"), nb::arg("accumulate") = false,
          "Write (or add) columns 16*g_begin to 16*g_end of `matmul(x)` into y: [T, n_out] float32.")
      .def("rows", [](const Weight& w, nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> indices) {
             return rows_of(w, widened<int64_t>(indices));
           },
           nb::arg("indices").noconvert(), "indices: [n] int32 or int64 -> new [n, n_in] float32. IndexError outside 0 to n_out - 1.")
      .def("rows", [](const Weight& w, nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> indices) {
             return rows_of(w, widened<int32_t>(indices));
           },
           nb::arg("indices").noconvert())
      .def("dequantize",
           [](const Weight& w) {
             std::vector<int64_t> all(static_cast<size_t>(w.n_out()));
             for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
             return rows_of(w, all);
           },
           "New [n_out, n_in] float32.")
      .def_static(
          "packed_nbytes",
          [](const std::string& encoding, int64_t n_out, int64_t n_in) {
            return Weight::packed_nbytes(encoding_info(encoding).encoding, n_out, n_in);
          },
          nb::arg("encoding"), nb::arg("n_out"), nb::arg("n_in"), "Bytes a packed weight of this shape will hold.")
      .def_prop_ro("encoding", [](const Weight& w) { return std::string(encoding_info(w.encoding()).name); })
      .def_prop_ro("residency",
                   [](const Weight& w) {
                     return std::string(w.residency() == Residency::Packed ? "packed" : "streamed");
                   })
      .def_prop_ro("n_out", &Weight::n_out)
      .def_prop_ro("n_in", &Weight::n_in)
      .def_prop_ro("n_groups", &Weight::n_groups, "Groups of 16 output rows.")
      .def_prop_ro("nbytes", &Weight::nbytes, "Resident bytes: 0 when streamed.")
      .def_prop_ro("file_nbytes", &Weight::file_nbytes, "Bytes of the file form, which a streamed call reads.")
      .def_prop_ro("scratch_nbytes", &Weight::scratch_nbytes, "Bytes of scratch a call needs per thread.");

  m.def("pack_weights", &pack_weights, nb::arg("weights"), nb::arg("n_threads"),
        "Read and pack weights made with pack=False on so many threads, without the interpreter's lock.\n"
        "WeightReadError if a file is unreadable or short.");
  m.def(
      "dequantize",
      [](const std::string& encoding, nb::handle data, int64_t n_elements) {
        const EncodingInfo& info = encoding_info(encoding);
        const BytesView bytes(data);
        const int64_t needed = encoded_nbytes(info, n_elements);
        if (bytes.nbytes() != needed)
          throw std::invalid_argument(std::to_string(n_elements) + " elements of " + info.name + " take " +
                                      std::to_string(needed) + " bytes, not " + std::to_string(bytes.nbytes()));
        FloatArray out = new_floats({static_cast<size_t>(n_elements)});
        NativeSection native;
        dequantize(info.encoding, bytes.data(), n_elements, out.data());
        return out;
      },
      nb::arg("encoding"), nb::arg("data"), nb::arg("n_elements"));
  m.def(
      "quantize",
      [](const std::string& encoding, const FloatRows& weights) {
        const EncodingInfo& info = encoding_info(encoding);
        if (!can_quantize(info.encoding))
          throw std::invalid_argument(std::string("encoding '") + info.name + "' can be read but not written");
        const int64_t n_in = static_cast<int64_t>(weights.shape(1));
        if (n_in % info.block_size != 0)
          throw std::invalid_argument("rows of " + std::to_string(n_in) + " weights are not whole blocks of " +
                                      std::to_string(info.block_size) + " as " + info.name + " needs");
        const int64_t n = static_cast<int64_t>(weights.shape(0)) * n_in;
        for (int64_t i = 0; i < n; ++i)
          if (!std::isfinite(weights.data()[i]))
            throw std::invalid_argument("weight [" + std::to_string(i / n_in) + ", " + std::to_string(i % n_in) +
                                        "] is not finite");
        nb::bytes out(nullptr, static_cast<size_t>(encoded_nbytes(info, n)));
        uint8_t* bytes = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(out.ptr()));
        {
          NativeSection native;
          quantize(info.encoding, weights.data(), n, bytes);
        }
        return out;
      },
      nb::arg("encoding"), nb::arg("weights"));
}

}  // namespace capax
