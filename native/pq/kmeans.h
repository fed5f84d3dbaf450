// Lloyd's algorithm (1957, published 1982) with the k-means++ start (Arthur and Vassilvitskii, 2007).
#pragma once

#include <stdint.h>

namespace capax {

struct KMeansProblem {
  const float* points;  // [n_points][stride], the first `dim` of a row are used
  int64_t n_points;
  int64_t stride;
  int64_t dim;
  int64_t n_clusters;
  int64_t n_iterations;  // at most; it ends earlier when no point changes its cluster
  uint64_t seed;
};

// Write n_clusters centroids [n_clusters][dim]. The points themselves, if there are no more of them
// than clusters (the rest repeats the first). An empty cluster takes the point that lies farthest from
// its centroid. The same bits on every instruction set: points are counted and added in order.
void kmeans(const KMeansProblem& problem, float* centroids);

}  // namespace capax
