#include "coding/frequencies.h"

#include <cmath>

#include "kernels.h"

namespace capax {

namespace {

constexpr int64_t kLanes = 16;

// Sum in 16 lanes, element j in lane j % 16, lanes added in order: the compiler may use vectors
// of any width without changing a bit.
double sum_of(const std::vector<float>& x) {
  double lanes[kLanes] = {};
  const int64_t n = static_cast<int64_t>(x.size());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(x[static_cast<size_t>(i + lane)]);
  for (int64_t lane = 0; i + lane < n; ++lane) lanes[lane] += static_cast<double>(x[static_cast<size_t>(i + lane)]);
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

bool Frequencies::take(const float* logits, int64_t n) {
  exps_.resize(static_cast<size_t>(n));
  widths_.resize(static_cast<size_t>(n));
  int64_t best = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(logits[i]);
    if (logits[i] > logits[best]) best = i;
  }
  if (!finite) return false;
  for (int64_t i = 0; i < n; ++i) exps_[static_cast<size_t>(i)] = logits[i] - logits[best];
  kernels().norms.exp(exps_.data(), n, exps_.data());
  const double scale = static_cast<double>(kFrequencyTotal - n) / sum_of(exps_);
  uint64_t total = 0;
  for (size_t i = 0; i < exps_.size(); ++i) {
    widths_[i] = 1 + static_cast<uint32_t>(static_cast<double>(exps_[i]) * scale);
    total += widths_[i];
  }
  widths_[static_cast<size_t>(best)] += static_cast<uint32_t>(static_cast<uint64_t>(kFrequencyTotal) - total);
  return true;
}

Interval Frequencies::of(int32_t symbol) const {
  uint32_t low = 0;
  for (size_t i = 0; i < static_cast<size_t>(symbol); ++i) low += widths_[i];
  return {low, widths_[static_cast<size_t>(symbol)]};
}

int32_t Frequencies::find(uint32_t target, Interval* interval) const {
  uint32_t low = 0;
  size_t i = 0;
  while (target - low >= widths_[i]) low += widths_[i++];
  *interval = {low, widths_[i]};
  return static_cast<int32_t>(i);
}

}  // namespace capax
