// Integer frequencies of a vocabulary, for an entropy coder that a model drives.
//
//   p_i = exp(logit_i - max logit) / sum;   f_i = 1 + floor(p_i * (2^30 - n))
//
// What is left of the total of 2^30 goes to the most likely symbol, the lowest id on ties. Every
// symbol can be coded, and costs at most -log2(1 - n / 2^30) bits more than -log2 p_i. The result
// is a function of the logits alone: the exponential has the same bits on every instruction set,
// and everything after it is double arithmetic and integers in one fixed order.
#pragma once

#include <cstdint>
#include <vector>

namespace capax {

constexpr int kFrequencyBits = 30;
constexpr int64_t kFrequencyTotal = int64_t{1} << kFrequencyBits;

// The part [low, low + width) of [0, 2^30) that belongs to a symbol.
struct Interval {
  uint32_t low, width;
};

class Frequencies {
 public:
  // Take the frequencies of logits [n], 1 <= n <= 2^24; false if one of them is not finite.
  bool take(const float* logits, int64_t n);
  Interval of(int32_t symbol) const;
  // The symbol whose interval contains target < 2^30.
  int32_t find(uint32_t target, Interval* interval) const;

 private:
  std::vector<float> exps_;
  std::vector<uint32_t> widths_;
};

}  // namespace capax
