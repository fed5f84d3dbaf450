// Python face of native/pq.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "kernels.h"
#include "parallel/team.h"
#include "pq/codec.h"
#include "pq/kmeans.h"

namespace nb = nanobind;

namespace capax {
namespace {

constexpr int64_t kMaxPoints = int64_t{1} << 31;
constexpr int64_t kMaxClusters = int64_t{1} << kMaxPQBits;

nb::ndarray<nb::numpy, float> fit_clusters(const Floats& points, const Ints& n_clusters, int64_t n_iterations,
                                           uint64_t seed, int n_threads) {
  check(points.ndim() == 3 && points.size() > 0, "points must be [n, n_sets, dim], none of them 0");
  const int64_t n = static_cast<int64_t>(points.shape(0)), n_sets = static_cast<int64_t>(points.shape(1)),
                dim = static_cast<int64_t>(points.shape(2));
  check(n < kMaxPoints, std::to_string(n) + " points are too many, at most 2^31 - 1 can be clustered");
  check(n_clusters.ndim() == 1 && static_cast<int64_t>(n_clusters.size()) == n_sets,
        "n_clusters must be [" + std::to_string(n_sets) + "]");
  for (size_t i = 0; i < n_clusters.size(); ++i)
    check(n_clusters.data()[i] >= 1 && n_clusters.data()[i] <= kMaxClusters,
          "n_clusters " + std::to_string(n_clusters.data()[i]) + " is not in 1.." + std::to_string(kMaxClusters));
  check(n_iterations >= 0 && n_iterations <= 100000, "n_iterations " + std::to_string(n_iterations) + " is not in 0..100000");
  check(n_threads >= 1 && n_threads <= 1024, "n_threads " + std::to_string(n_threads) + " is not in 1..1024");
  for (size_t i = 0; i < points.size(); ++i)
    check(std::isfinite(points.data()[i]), "points hold a value that is not finite");
  const int64_t most = *std::max_element(n_clusters.data(), n_clusters.data() + n_sets);
  auto out = new_array<float>({static_cast<size_t>(n_sets), static_cast<size_t>(most), static_cast<size_t>(dim)});
  std::fill_n(out.data(), out.size(), __builtin_nanf(""));
  NativeSection native;
  Team team(n_threads);
  std::atomic<int64_t> next{0};
  std::atomic<bool> has_memory{true};
  team.run([&](int) {
    for (int64_t set = next.fetch_add(1); set < n_sets; set = next.fetch_add(1)) {
      const KMeansProblem problem{points.data() + set * dim, n,   n_sets * dim, dim, n_clusters.data()[set], n_iterations,
                                  seed + static_cast<uint64_t>(set)};
      try {
        kmeans(problem, out.data() + set * most * dim);
      } catch (const std::bad_alloc&) {  // a body must not throw
        has_memory = false;
      }
    }
  });
  if (!has_memory) throw std::bad_alloc();
  return out;
}

nb::ndarray<nb::numpy, int32_t> nearest_centroids(const Floats& points, const Floats& centroids) {
  check(points.ndim() == 2 && centroids.ndim() == 2 && centroids.size() > 0 && points.shape(1) == centroids.shape(1),
        "points [n, dim] and centroids [n_clusters, dim] must have the same dim");
  check(static_cast<int64_t>(centroids.shape(0)) <= kMaxClusters,
        std::to_string(centroids.shape(0)) + " centroids are more than " + std::to_string(kMaxClusters));
  const int64_t n = static_cast<int64_t>(points.shape(0)), dim = static_cast<int64_t>(points.shape(1));
  const int64_t padded = (n + 15) / 16 * 16;
  auto out = new_array<int32_t>({points.shape(0)});
  std::vector<float> columns(static_cast<size_t>(dim * padded));
  std::vector<int32_t> index(static_cast<size_t>(padded));
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < dim; ++d) columns[static_cast<size_t>(d * padded + i)] = points.data()[i * dim + d];
  NativeSection native;
  kernels().pq.nearest(columns.data(), padded, padded, centroids.data(), static_cast<int64_t>(centroids.shape(0)), dim,
                       index.data(), nullptr);
  std::copy_n(index.begin(), n, out.data());
  return out;
}

using Halves = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;

std::vector<PQBook> books_of(const std::vector<Halves>& arrays, const char* name) {
  std::vector<PQBook> books;
  for (const Halves& a : arrays) {
    check(a.ndim() == 3 && a.size() > 0,
          std::string(name) + " must be bfloat16 bits [n_subspaces, n_centroids, sub_dim], none of them 0");
    books.emplace_back(a.data(), static_cast<int64_t>(a.shape(0)), static_cast<int64_t>(a.shape(1)),
                       static_cast<int64_t>(a.shape(2)));
  }
  return books;
}

void make_codec(PQCodec* self, const std::vector<Halves>& k_books, const std::vector<Halves>& v_books,
                const std::vector<int32_t>& k_book, const std::vector<int32_t>& v_book, int32_t n_kv_heads, int32_t k_dim,
                int32_t v_dim, int64_t block_tokens, bool by_subspace, bool uses_tables) {
  new (self) PQCodec({n_kv_heads, k_dim, v_dim, block_tokens, books_of(k_books, "k_books"), books_of(v_books, "v_books"),
                      k_book, v_book, by_subspace ? PQSum::by_subspace : PQSum::along_vector, uses_tables});
}

}  // namespace

void bind_pq(nb::module_& m) {
  m.attr("MAX_PQ_BITS") = kMaxPQBits;
  m.def("fit_clusters", &fit_clusters, nb::arg("points"), nb::arg("n_clusters").noconvert(), nb::arg("n_iterations"),
        nb::arg("seed"), nb::arg("n_threads"),
        "k-means of each set of points [n, n_sets, dim] into n_clusters int32 [n_sets] -> centroids [n_sets, most, dim], "
        "NaN beyond a set's own. The points themselves if they are no more than the clusters. The same bits whatever the "
        "threads and the instruction set.");
  m.def("nearest_centroids", &nearest_centroids, nb::arg("points"), nb::arg("centroids"),
        "Index of the nearest of centroids [n_clusters, dim] to each of points [n, dim], the lowest of equals; int32 [n].");
  nb::class_<PQCodec, Codec>(m, "PQCodec", "Product codes of keys and values.")
      .def("__init__", &make_codec, nb::arg("k_books"), nb::arg("v_books"), nb::arg("k_book"), nb::arg("v_book"),
           nb::arg("n_kv_heads"), nb::arg("k_dim"), nb::arg("v_dim"), nb::arg("block_tokens") = 64,
           nb::arg("by_subspace") = false, nb::arg("uses_tables") = false,
           "Books: uint16 arrays of bfloat16 bits [n_subspaces, n_centroids, sub_dim]; the last centroid of sub-space 0 is "
           "NaN. k_book, v_book: the book of each layer and head, -1 for a layer that is kept exactly.")
      .def_prop_ro("books_nbytes", &PQCodec::books_nbytes, "Bytes of the centroids in the forms that the kernels read.");
}

}  // namespace capax
