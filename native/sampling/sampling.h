// From logits to a token.
//
// The order of the steps, each optional:
//   mask -> logit bias -> repetition, then presence and frequency penalties -> temperature
//   -> top_k -> top_p -> min_p -> one draw
// Every filter keeps a prefix of the order (logit descending, token ascending), so ties at a border
// keep the lower token:
//   top_k: exactly k tokens;  top_p: the fewest whose mass reaches top_p of what top_k left, at least
//   one;  min_p: tokens with at least min_p times the probability of the most likely one.
// Temperature 0 takes the largest logit (after mask, bias and penalties), the lowest token on ties.
// The draw uses one uniform number, a function of (seed, choice, position) alone. Sums run in a fixed
// order, so a token and its log-probability are the same on every instruction set and thread count.
// Log-probabilities are of the raw logits: natural log, before every step above.
#pragma once

#include <stdint.h>

namespace capax {

enum class SampleStatus : int32_t {
  ok = 0,
  nonfinite = 1,   // a raw logit is NaN or infinite: an error of this request, never a token
  all_masked = 2,  // mask and bias left no token
};

struct TokenBias {
  int32_t token;
  float bias;  // finite, or -infinity to forbid the token
};

// A token that the prompt or the output contains; each token at most once in a list.
struct TokenCount {
  int32_t token;
  int32_t n_output;  // occurrences in the output; 0 if only in the prompt
};

struct TokenLogprob {
  int32_t token;
  float logprob;
};

struct SampleRequest {
  const float* logits;  // [vocab_size]
  int64_t vocab_size;
  float temperature = 1.0f;         // >= 0; 0: greedy
  int32_t top_k = 0;                // 0: off
  float top_p = 1.0f;               // [0, 1]; 1: off
  float min_p = 0.0f;               // [0, 1]; 0: off
  float repetition_penalty = 1.0f;  // > 0, over prompt and output: x > 0 ? x / r : x * r
  float presence_penalty = 0.0f;    // x - p for tokens of the output
  float frequency_penalty = 0.0f;   // x - f * n_output
  uint64_t seed = 0;
  uint64_t position = 0;  // of the token to be chosen
  uint32_t choice = 0;    // index of the choice among a request's n
  int32_t n_top = -1;     // log-probabilities wanted: -1 none, 0 of the chosen token, n also of the n best
  const uint32_t* mask = nullptr;  // bit t of word t / 32: token t is allowed; null: all are
  const TokenBias* bias = nullptr;
  int64_t n_bias = 0;
  const TokenCount* counts = nullptr;
  int64_t n_counts = 0;
};

struct Sampled {
  int32_t token;   // -1 unless the status is ok
  float logprob;   // 0 if not wanted
};

struct Scored {
  float logprob;     // of the target
  int32_t greedy;    // the token with the largest logit, the lowest on ties
};

constexpr int64_t kSampleBlock = 128;  // tokens per partial sum

// Scratch of sample and score, in floats.
static inline int64_t sample_scratch_floats(int64_t vocab_size) {
  return 3 * vocab_size + 4 * ((vocab_size + kSampleBlock - 1) / kSampleBlock) + kSampleBlock;
}

struct SamplingKernels {
  // Choose a token. top: [n_top], the best tokens in order. vocab_size >= 1; n_top <= vocab_size.
  SampleStatus (*sample)(const SampleRequest& request, float* scratch, Sampled* out, TokenLogprob* top);
  // Log-probability of a given target, for prompts and perplexity. n_top >= 0 as above.
  SampleStatus (*score)(const float* logits, int64_t vocab_size, int32_t target, int32_t n_top, float* scratch,
                        Scored* out, TokenLogprob* top);
};

}  // namespace capax
