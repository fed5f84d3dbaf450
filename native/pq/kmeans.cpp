#include "pq/kmeans.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"
#include "sampling/philox.h"

namespace capax {
namespace {

constexpr int64_t kBlock = 64;          // points whose weight is summed before it is searched
constexpr int64_t kSamplePerCluster = 32;  // points that the start looks at

int64_t align16(int64_t n) { return (n + 15) / 16 * 16; }

// Points by coordinate, as the kernel reads them: [dim][padded], the padding repeats the last point.
struct Columns {
  Columns(const KMeansProblem& p, int64_t n, int64_t step) : n_points(n), padded(align16(n)) {
    values.resize(static_cast<size_t>(p.dim * padded));
    for (int64_t i = 0; i < padded; ++i)
      for (int64_t d = 0; d < p.dim; ++d)
        values[static_cast<size_t>(d * padded + i)] = p.points[std::min(i, n - 1) * step * p.stride + d];
  }
  float at(int64_t i, int64_t d) const { return values[static_cast<size_t>(d * padded + i)]; }

  int64_t n_points, padded;
  std::vector<float> values;
};

struct Assignment {
  explicit Assignment(const Columns& c) : cluster(static_cast<size_t>(c.padded)), distance(static_cast<size_t>(c.padded)) {}
  std::vector<int32_t> cluster;
  std::vector<float> distance;
};

void assign(const Columns& points, const float* centroids, int64_t n_clusters, int64_t dim, Assignment& to) {
  kernels().pq.nearest(points.values.data(), points.padded, points.padded, centroids, n_clusters, dim, to.cluster.data(),
                       to.distance.data());
}

// Draw an index with a chance proportional to weight[i] >= 0; -1 if all weights are 0.
int64_t draw(const std::vector<float>& weight, int64_t n, double uniform, std::vector<double>& sums) {
  const int64_t n_blocks = (n + kBlock - 1) / kBlock;
  sums.assign(static_cast<size_t>(n_blocks), 0.0);
  double total = 0.0;
  for (int64_t b = 0; b < n_blocks; ++b) {
    double part[4] = {};
    for (int64_t i = b * kBlock; i < std::min((b + 1) * kBlock, n); ++i)
      part[i % 4] += static_cast<double>(weight[static_cast<size_t>(i)]);
    sums[static_cast<size_t>(b)] = (part[0] + part[1]) + (part[2] + part[3]);
    total += sums[static_cast<size_t>(b)];
  }
  if (!(total > 0.0)) return -1;
  double left = uniform * total;
  int64_t block = 0;
  while (block + 1 < n_blocks && left >= sums[static_cast<size_t>(block)]) left -= sums[static_cast<size_t>(block++)];
  int64_t chosen = -1;
  for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, n); ++i) {
    if (weight[static_cast<size_t>(i)] <= 0.0f) continue;
    chosen = i;
    left -= static_cast<double>(weight[static_cast<size_t>(i)]);
    if (left < 0.0) break;
  }
  if (chosen >= 0) return chosen;
  for (int64_t i = block * kBlock; i-- > 0;)  // rounding led into a block without weight
    if (weight[static_cast<size_t>(i)] > 0.0f) return i;
  return -1;
}

// k-means++: each further centroid is a point drawn by its squared distance to those chosen so far.
void start(const KMeansProblem& p, float* centroids) {
  const int64_t wanted = std::min(p.n_points, std::max(kSamplePerCluster * p.n_clusters, int64_t{4096}));
  const int64_t step = p.n_points / wanted;
  const Columns sample(p, p.n_points / step, step);
  const int64_t n = sample.n_points;
  Assignment to_newest(sample);
  std::vector<float> least(static_cast<size_t>(n), std::numeric_limits<float>::max());
  std::vector<double> sums;
  int64_t chosen = static_cast<int64_t>(philox_uniform(p.seed, 0, 0, 0) * static_cast<double>(n));
  for (int64_t c = 0; c < p.n_clusters; ++c) {
    float* centroid = centroids + c * p.dim;
    for (int64_t d = 0; d < p.dim; ++d) centroid[d] = sample.at(chosen, d);
    if (c + 1 == p.n_clusters) break;
    assign(sample, centroid, 1, p.dim, to_newest);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) least[i] = std::min(least[i], to_newest.distance[i]);
    chosen = draw(least, n, philox_uniform(p.seed, 0, static_cast<uint64_t>(c) + 1, 0), sums);
    if (chosen < 0) chosen = 0;  // fewer distinct points than clusters
  }
}

// Move every centroid to the mean of its points. Returns the empty clusters, in order.
std::vector<int64_t> move(const Columns& points, const Assignment& to, int64_t n_clusters, int64_t dim, float* centroids) {
  std::vector<double> sum(static_cast<size_t>(n_clusters * dim));
  std::vector<int64_t> count(static_cast<size_t>(n_clusters));
  for (int64_t i = 0; i < points.n_points; ++i) {
    const int64_t c = to.cluster[static_cast<size_t>(i)];
    ++count[static_cast<size_t>(c)];
    for (int64_t d = 0; d < dim; ++d) sum[static_cast<size_t>(c * dim + d)] += static_cast<double>(points.at(i, d));
  }
  std::vector<int64_t> empty;
  for (int64_t c = 0; c < n_clusters; ++c) {
    const int64_t n = count[static_cast<size_t>(c)];
    if (n == 0) empty.push_back(c);
    for (int64_t d = 0; n && d < dim; ++d)
      centroids[c * dim + d] = static_cast<float>(sum[static_cast<size_t>(c * dim + d)] / static_cast<double>(n));
  }
  return empty;
}

}  // namespace

void kmeans(const KMeansProblem& p, float* centroids) {
  if (p.n_points <= p.n_clusters) {
    for (int64_t c = 0; c < p.n_clusters; ++c)
      std::memcpy(centroids + c * p.dim, p.points + (c < p.n_points ? c : 0) * p.stride,
                  static_cast<size_t>(p.dim) * sizeof(float));
    return;
  }
  start(p, centroids);
  const Columns points(p, p.n_points, 1);
  Assignment now(points);
  std::vector<int32_t> before;
  for (int64_t iteration = 0; iteration < p.n_iterations; ++iteration) {
    assign(points, centroids, p.n_clusters, p.dim, now);
    if (now.cluster == before) break;
    before = now.cluster;
    const auto end = now.distance.begin() + p.n_points;
    for (int64_t c : move(points, now, p.n_clusters, p.dim, centroids)) {
      const auto farthest = std::max_element(now.distance.begin(), end);
      if (!(*farthest > 0.0f)) break;
      for (int64_t d = 0; d < p.dim; ++d) centroids[c * p.dim + d] = points.at(farthest - now.distance.begin(), d);
      *farthest = 0.0f;
    }
  }
}

}  // namespace capax
