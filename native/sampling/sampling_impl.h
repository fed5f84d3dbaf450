#pragma once

#include <float.h>
#include <math.h>

#include "isa/isa.h"
#include "norms/norms_impl.h"
#include "sampling/philox.h"
#include "sampling/sampling.h"

namespace {

// What a row is worked on with; all in the caller's scratch.
struct SampleScratch {
  float* x;          // [n] logits after mask, bias and penalties
  float* weight;     // [n] exp((x - max) / temperature)
  int32_t* ids;      // [n] candidates
  float* block_max;  // [n_blocks]
  float* block_sum;  // [n_blocks]
  int32_t* block_ids;
};

static inline int64_t n_sample_blocks(int64_t n) { return (n + capax::kSampleBlock - 1) / capax::kSampleBlock; }

static inline SampleScratch split_scratch(float* scratch, int64_t n) {
  float* block_max = scratch + 3 * n;
  float* block_sum = block_max + n_sample_blocks(n);
  return {scratch, scratch + n, reinterpret_cast<int32_t*>(scratch + 2 * n), block_max, block_sum,
          reinterpret_cast<int32_t*>(block_sum + n_sample_blocks(n))};
}

// The maximum of each block, and in the same pass whether every value is finite (x * 0 is 0 then).
template <class Isa>
static inline bool scan_blocks(const float* x, int64_t n, float* block_max) {
  using F = typename Isa::F;
  F zeros = Isa::zero();
  for (int64_t b = 0; b * capax::kSampleBlock < n; ++b) {
    const int64_t end = n < (b + 1) * capax::kSampleBlock ? n : (b + 1) * capax::kSampleBlock;
    F m[2] = {Isa::set1(-__builtin_inff()), Isa::set1(-__builtin_inff())};
    int64_t i = b * capax::kSampleBlock;
    for (; i + 32 <= end; i += 32) {
      const F a = Isa::load(x + i), c = Isa::load(x + i + 16);
      m[0] = Isa::max(a, m[0]);
      m[1] = Isa::max(c, m[1]);
      zeros = Isa::fma(a, Isa::zero(), Isa::fma(c, Isa::zero(), zeros));
    }
    for (; i < end; i += 16) {
      const int valid = end - i < 16 ? static_cast<int>(end - i) : 16;
      m[0] = Isa::max(Isa::load_n(x + i, valid, -__builtin_inff()), m[0]);
      zeros = Isa::fma(Isa::load_n(x + i, valid, 0.0f), Isa::zero(), zeros);
    }
    block_max[b] = Isa::hmax(Isa::max(m[0], m[1]));
  }
  return Isa::hsum(zeros) == 0.0f;
}

// The lowest token with the largest value; -1 if every value is -infinity.
static inline int32_t argmax_of(const float* x, const float* block_max, int64_t n) {
  int64_t best = 0;
  for (int64_t b = 1; b < n_sample_blocks(n); ++b)
    if (block_max[b] > block_max[best]) best = b;
  if (!(block_max[best] > -__builtin_inff())) return -1;
  int64_t i = best * capax::kSampleBlock;
  while (x[i] != block_max[best]) ++i;
  return static_cast<int32_t>(i);
}

// ---- prefixes of the order (value descending, token ascending) --------------------------------

// The last token of a prefix: it holds every token with a larger value, and those with the same value
// up to this one.
struct Cut {
  float x;
  int32_t token;
};

// The shortest prefix of the candidates whose weights add up to the target, at least one token.
// weight null: every token weighs 1. ids: ascending, at least one; destroyed. Buckets of equal width
// narrow down to the one where the target is reached; only what is left there is sorted.
static inline Cut shortest_prefix(const float* x, const float* weight, int32_t* ids, int64_t n, double target) {
  constexpr int kBuckets = 128;
  double taken = 0.0;
  for (;;) {
    float low = x[ids[0]], high = low;
    for (int64_t i = 1; i < n; ++i) {
      low = x[ids[i]] < low ? x[ids[i]] : low;
      high = x[ids[i]] > high ? x[ids[i]] : high;
    }
    if (n <= 32 || low == high) {
      for (int64_t i = 1; i < n && low != high; ++i) {  // stable, so ties stay in token order
        const int32_t id = ids[i];
        int64_t j = i;
        for (; j > 0 && x[ids[j - 1]] < x[id]; --j) ids[j] = ids[j - 1];
        ids[j] = id;
      }
      int64_t i = 0;
      for (; i < n - 1; ++i) {
        taken += weight ? static_cast<double>(weight[ids[i]]) : 1.0;
        if (taken >= target) break;
      }
      return {x[ids[i]], ids[i]};
    }
    const double per_unit = kBuckets / (static_cast<double>(high) - static_cast<double>(low));
    const auto bucket_of = [&](float value) {
      const double b = (static_cast<double>(high) - static_cast<double>(value)) * per_unit;
      return b < kBuckets - 1 ? static_cast<int>(b) : kBuckets - 1;
    };
    double mass[kBuckets] = {};
    for (int64_t i = 0; i < n; ++i) mass[bucket_of(x[ids[i]])] += weight ? static_cast<double>(weight[ids[i]]) : 1.0;
    int bucket = 0;  // the last one is never empty: it holds the lowest value
    for (; bucket < kBuckets - 1 && taken + mass[bucket] < target; ++bucket) taken += mass[bucket];
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i)
      if (bucket_of(x[ids[i]]) == bucket) ids[kept++] = ids[i];
    n = kept;
  }
}

// The k-th token of the order over values that are not -infinity; 1 <= k. Only blocks that can hold
// it are looked into: the k-th largest block maximum is a lower bound of the k-th largest value.
static inline Cut kth_of(const float* x, int64_t n, int64_t k, const SampleScratch& s) {
  const int64_t n_blocks = n_sample_blocks(n);
  float floor = -FLT_MAX;
  if (k < n_blocks) {
    for (int64_t b = 0; b < n_blocks; ++b) s.block_ids[b] = static_cast<int32_t>(b);
    const float bound = shortest_prefix(s.block_max, nullptr, s.block_ids, n_blocks, static_cast<double>(k)).x;
    floor = bound > floor ? bound : floor;
  }
  int64_t found = 0;
  for (int64_t b = 0; b < n_blocks; ++b) {
    if (!(s.block_max[b] >= floor)) continue;
    const int64_t end = n < (b + 1) * capax::kSampleBlock ? n : (b + 1) * capax::kSampleBlock;
    for (int64_t i = b * capax::kSampleBlock; i < end; ++i)
      if (x[i] >= floor) s.ids[found++] = static_cast<int32_t>(i);
  }
  return shortest_prefix(x, nullptr, s.ids, found, static_cast<double>(k));
}

// Drop what lies behind the cut: afterwards the prefix is { x >= cut.x }.
static inline void drop_ties(float* x, int64_t n, Cut cut) {
  for (int64_t i = cut.token + 1; i < n; ++i) x[i] = x[i] == cut.x ? -__builtin_inff() : x[i];
}

// ---- the draw ---------------------------------------------------------------------------------

struct Draw {
  float max;      // of x
  float inverse;  // 1 / temperature
  float floor;    // tokens with a smaller x weigh nothing
  float min_p;    // nor do tokens with a smaller weight; the largest weight is 1
};

template <class Isa>
static inline typename Isa::F weight_of(typename Isa::F x, const Draw& d) {
  using F = typename Isa::F;
  F w = exp_nonpositive<Isa>(Isa::mul(Isa::sub(x, Isa::set1(d.max)), Isa::set1(d.inverse)));
  w = Isa::lt_select(x, Isa::set1(d.floor), Isa::zero(), w);
  return Isa::lt_select(w, Isa::set1(d.min_p), Isa::zero(), w);
}

// Sum of the weights per block, and their total; the weights themselves too unless `weight` is null.
template <class Isa>
static inline double sum_blocks(const float* x, int64_t n, const Draw& d, const SampleScratch& s, float* weight) {
  using F = typename Isa::F;
  double total = 0.0;
  for (int64_t b = 0; b * capax::kSampleBlock < n; ++b) {
    s.block_sum[b] = 0.0f;
    const int64_t start = b * capax::kSampleBlock;
    const int64_t end = n < start + capax::kSampleBlock ? n : start + capax::kSampleBlock;
    if (s.block_max[b] < d.floor) {
      if (weight) memset(weight + start, 0, static_cast<size_t>(end - start) * sizeof(float));
      continue;
    }
    F acc[2] = {Isa::zero(), Isa::zero()};
    int64_t i = start;
    for (; i + 32 <= end; i += 32) {
      for (int a = 0; a < 2; ++a) {
        const F w = weight_of<Isa>(Isa::load(x + i + 16 * a), d);
        if (weight) Isa::store(weight + i + 16 * a, w);
        acc[a] = Isa::add(acc[a], w);
      }
    }
    for (int a = 0; i < end; i += 16, ++a) {
      const int valid = end - i < 16 ? static_cast<int>(end - i) : 16;
      const F w = weight_of<Isa>(Isa::load_n(x + i, valid, -__builtin_inff()), d);
      if (weight) Isa::store_n(weight + i, w, valid);
      acc[a] = Isa::add(acc[a], w);
    }
    s.block_sum[b] = Isa::hsum(Isa::add(acc[0], acc[1]));
    total += static_cast<double>(s.block_sum[b]);
  }
  return total;
}

// The token at which the running sum of weights passes uniform * total. Never one of weight 0.
template <class Isa>
static inline int32_t draw_token(const float* x, int64_t n, const Draw& d, double uniform, const SampleScratch& s) {
  double target = uniform * sum_blocks<Isa>(x, n, d, s, nullptr);
  const int64_t n_blocks = n_sample_blocks(n);
  int64_t block = -1;
  for (int64_t b = 0; b < n_blocks; ++b) {  // the last block with a weight if rounding leaves a rest
    if (!(s.block_sum[b] > 0.0f)) continue;
    if (block >= 0) target -= static_cast<double>(s.block_sum[block]);
    block = b;
    if (target < static_cast<double>(s.block_sum[b])) break;
  }
  const int64_t start = block * capax::kSampleBlock;
  const int64_t end = n < start + capax::kSampleBlock ? n : start + capax::kSampleBlock;
  int32_t chosen = -1;
  double sum = 0.0;
  for (int64_t i = start; i < end; i += 16) {
    const int valid = end - i < 16 ? static_cast<int>(end - i) : 16;
    float w[16];
    Isa::store(w, weight_of<Isa>(Isa::load_n(x + i, valid, -__builtin_inff()), d));
    for (int lane = 0; lane < valid; ++lane) {
      if (!(w[lane] > 0.0f)) continue;
      chosen = static_cast<int32_t>(i + lane);
      sum += static_cast<double>(w[lane]);
      if (sum > target) return chosen;
    }
  }
  return chosen;
}

// The shortest prefix with top_p of the total weight. A token that weighs less than half of
// (1 - top_p) * total / n cannot belong to it: all such together weigh less than what is left out.
template <class Isa>
static inline Cut nucleus(const float* x, int64_t n, float top_p, const Draw& d, const SampleScratch& s) {
  const double total = sum_blocks<Isa>(x, n, d, s, s.weight);
  const float least = static_cast<float>(0.5 * (1.0 - static_cast<double>(top_p)) * total / static_cast<double>(n));
  int64_t found = 0;
  for (int64_t b = 0; b < n_sample_blocks(n); ++b) {
    if (!(s.block_sum[b] >= least) || !(s.block_sum[b] > 0.0f)) continue;
    const int64_t end = n < (b + 1) * capax::kSampleBlock ? n : (b + 1) * capax::kSampleBlock;
    for (int64_t i = b * capax::kSampleBlock; i < end; ++i)
      if (s.weight[i] >= least && s.weight[i] > 0.0f) s.ids[found++] = static_cast<int32_t>(i);
  }
  return shortest_prefix(x, s.weight, s.ids, found, static_cast<double>(top_p) * total);
}

// ---- log-probabilities ------------------------------------------------------------------------

// The n_top best tokens of the raw logits in order. s.block_max belongs to them.
static inline void best_tokens(const float* logits, int64_t n, int32_t n_top, double lse, const SampleScratch& s,
                               capax::TokenLogprob* top) {
  if (n_top <= 0) return;
  const Cut cut = kth_of(logits, n, n_top, s);
  int32_t found = 0;
  for (int64_t b = 0; b < n_sample_blocks(n); ++b) {
    if (!(s.block_max[b] >= cut.x)) continue;
    const int64_t end = n < (b + 1) * capax::kSampleBlock ? n : (b + 1) * capax::kSampleBlock;
    for (int64_t i = b * capax::kSampleBlock; i < end; ++i) {
      if (!(logits[i] > cut.x || (logits[i] == cut.x && i <= cut.token))) continue;
      int32_t j = found++;
      for (; j > 0 && logits[top[j - 1].token] < logits[i]; --j) top[j] = top[j - 1];
      top[j].token = static_cast<int32_t>(i);
    }
  }
  for (int32_t j = 0; j < found; ++j)
    top[j].logprob = static_cast<float>(static_cast<double>(logits[top[j].token]) - lse);
}

// log(sum(exp(logits))) in double: the sum is float32 in fixed order, its error is below 1e-6.
template <class Isa>
static inline double log_total(const float* logits, int64_t n, float max) {
  return static_cast<double>(max) + log(static_cast<double>(sum_exp<Isa>(logits, n, max, nullptr)));
}

// ---- the kernels ------------------------------------------------------------------------------

// Bias and penalties never make an infinite logit: that would mean forbidden, or certain.
static inline float finite(float x) { return x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : x; }

// Mask, bias and penalties, in this order, on a copy of the logits.
static inline void adjust(const capax::SampleRequest& r, float* x) {
  memcpy(x, r.logits, static_cast<size_t>(r.vocab_size) * sizeof(float));
  for (int64_t i = 0; r.mask && i < r.vocab_size; ++i)
    if (!(r.mask[i / 32] >> (i % 32) & 1u)) x[i] = -__builtin_inff();
  for (int64_t i = 0; i < r.n_bias; ++i) {
    float& value = x[r.bias[i].token];
    const bool forbidden = value == -__builtin_inff() || r.bias[i].bias == -__builtin_inff();
    value = forbidden ? -__builtin_inff() : finite(value + r.bias[i].bias);
  }
  for (int64_t i = 0; i < r.n_counts; ++i) {
    float& value = x[r.counts[i].token];
    if (value == -__builtin_inff()) continue;
    value = finite(value > 0.0f ? value / r.repetition_penalty : value * r.repetition_penalty);
    if (r.counts[i].n_output > 0)
      value = finite(value - (r.presence_penalty + r.frequency_penalty * static_cast<float>(r.counts[i].n_output)));
  }
}

template <class Isa>
static capax::SampleStatus sample_row(const capax::SampleRequest& r, float* scratch, capax::Sampled* out,
                                      capax::TokenLogprob* top) {
  using namespace capax;
  const int64_t n = r.vocab_size;
  const SampleScratch s = split_scratch(scratch, n);
  *out = {-1, 0.0f};
  if (!scan_blocks<Isa>(r.logits, n, s.block_max)) return SampleStatus::nonfinite;
  int32_t best = argmax_of(r.logits, s.block_max, n);
  double lse = 0.0;
  if (r.n_top >= 0) {
    lse = log_total<Isa>(r.logits, n, r.logits[best]);
    best_tokens(r.logits, n, r.n_top, lse, s, top);
  }

  const bool penalised = r.n_counts > 0 && (r.repetition_penalty != 1.0f || r.presence_penalty != 0.0f ||
                                            r.frequency_penalty != 0.0f);
  const bool adjusted = r.mask || r.n_bias > 0 || penalised;
  if (adjusted) {
    SampleRequest wanted = r;
    if (!penalised) wanted.n_counts = 0;
    adjust(wanted, s.x);
    scan_blocks<Isa>(s.x, n, s.block_max);
    best = argmax_of(s.x, s.block_max, n);
    if (best < 0) return SampleStatus::all_masked;
  }
  const float* x = adjusted ? s.x : r.logits;
  out->token = best;
  const float inverse = r.temperature > 0.0f ? 1.0f / r.temperature : __builtin_inff();
  if (inverse <= FLT_MAX && r.top_k != 1) {
    Draw d = {x[best], inverse, -FLT_MAX, 0.0f};
    const bool by_k = r.top_k > 0 && r.top_k < n, by_p = r.top_p < 1.0f;
    if (by_k || by_p) {
      if (!adjusted) memcpy(s.x, r.logits, static_cast<size_t>(n) * sizeof(float));
      x = s.x;
    }
    if (by_k) {
      const Cut cut = kth_of(x, n, r.top_k, s);
      drop_ties(s.x, n, cut);
      d.floor = cut.x;
    }
    if (by_p) {
      const Cut cut = nucleus<Isa>(x, n, r.top_p, d, s);
      drop_ties(s.x, n, cut);
      d.floor = cut.x;
    }
    d.min_p = r.min_p;
    out->token = draw_token<Isa>(x, n, d, philox_uniform(r.seed, r.choice, r.position, 0), s);
  }
  if (r.n_top >= 0) out->logprob = static_cast<float>(static_cast<double>(r.logits[out->token]) - lse);
  return SampleStatus::ok;
}

template <class Isa>
static capax::SampleStatus score_row(const float* logits, int64_t n, int32_t target, int32_t n_top, float* scratch,
                                     capax::Scored* out, capax::TokenLogprob* top) {
  using namespace capax;
  const SampleScratch s = split_scratch(scratch, n);
  *out = {0.0f, -1};
  if (!scan_blocks<Isa>(logits, n, s.block_max)) return SampleStatus::nonfinite;
  out->greedy = argmax_of(logits, s.block_max, n);
  const double lse = log_total<Isa>(logits, n, logits[out->greedy]);
  out->logprob = static_cast<float>(static_cast<double>(logits[target]) - lse);
  best_tokens(logits, n, n_top, lse, s, top);
  return SampleStatus::ok;
}

template <class Isa>
constexpr capax::SamplingKernels sampling_kernels() {
  return {sample_row<Isa>, score_row<Isa>};
}

}  // namespace
