// What one choice of a request remembers between its tokens: settings, position, counts.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sampling/sampling.h"

namespace capax {

class Sampler {
 public:
  SampleRequest settings;        // logits, mask, bias and counts are filled in by `request`
  std::vector<TokenBias> bias;
  std::vector<TokenCount> counts;  // of tokens seen, kept only if a penalty needs them
  std::vector<uint32_t> mask;      // of the next token, see SampleRequest; empty: all are allowed

  // Count a token of the prompt, or one more occurrence in the output.
  void see(int32_t token, bool in_output) {
    const auto [entry, is_new] = index_.try_emplace(token, counts.size());
    if (is_new) counts.push_back({token, 0});
    counts[entry->second].n_output += in_output;
  }
  bool is_penalised() const {
    return settings.repetition_penalty != 1.0f || settings.presence_penalty != 0.0f ||
           settings.frequency_penalty != 0.0f;
  }
  // The largest token id it refers to; a vocabulary must be larger.
  int32_t max_token() const {
    int32_t largest = -1;
    for (const TokenBias& entry : bias) largest = entry.token > largest ? entry.token : largest;
    for (const TokenCount& entry : counts) largest = entry.token > largest ? entry.token : largest;
    return largest;
  }
  SampleRequest request(const float* logits, int64_t vocab_size) const {
    SampleRequest r = settings;
    r.logits = logits;
    r.vocab_size = vocab_size;
    r.mask = mask.empty() ? nullptr : mask.data();
    r.bias = bias.data();
    r.n_bias = static_cast<int64_t>(bias.size());
    r.counts = counts.data();
    r.n_counts = static_cast<int64_t>(counts.size());
    return r;
  }
  // The token at `settings.position` was chosen: the next one comes after it.
  void accept(int32_t token) {
    if (is_penalised()) see(token, true);
    ++settings.position;
  }

 private:
  std::unordered_map<int32_t, size_t> index_;
};

// What came of one row.
struct SampleResult {
  SampleStatus status = SampleStatus::ok;
  Sampled chosen{};
  std::vector<TokenLogprob> top;
};

}  // namespace capax
