// Python face of native/sampling. Every range is checked here again, whatever Python validated.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sampling.h"
#include "kernels.h"
#include "sampling/philox.h"

namespace nb = nanobind;

namespace capax {
namespace {

using Words = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntResult = nb::ndarray<nb::numpy, int32_t>;
using FloatResult = nb::ndarray<nb::numpy, float>;

void check_in(double value, double low, double high, const char* name) {
  check(value >= low && value <= high, std::string(name) + " " + std::to_string(value) + " is not in " +
                                           std::to_string(low) + ".." + std::to_string(high));
}

void check_token(int64_t token, int64_t vocab_size) {
  check(token >= 0 && token < vocab_size,
        "token " + std::to_string(token) + " is not in 0.." + std::to_string(vocab_size - 1));
}

void check_mask(size_t n_words, int64_t vocab_size) {
  check(static_cast<int64_t>(n_words) >= (vocab_size + 31) / 32,
        "mask has " + std::to_string(n_words) + " words but " + std::to_string(vocab_size) + " tokens need " +
            std::to_string((vocab_size + 31) / 32));
}

const char* name_of(SampleStatus status) {
  return status == SampleStatus::ok ? "ok" : status == SampleStatus::nonfinite ? "nonfinite" : "all_masked";
}

SampleRequest make_settings(double temperature, int64_t top_k, double top_p, double min_p, double repetition_penalty,
                            double presence_penalty, double frequency_penalty, uint64_t seed, uint64_t position,
                            uint32_t choice, int32_t n_top) {
  check_in(temperature, 0.0, 1e38, "temperature");
  check_in(static_cast<double>(top_k), 0.0, INT32_MAX, "top_k");
  check_in(top_p, 0.0, 1.0, "top_p");
  check_in(min_p, 0.0, 1.0, "min_p");
  check_in(repetition_penalty, 1e-6, 1e6, "repetition_penalty");
  check_in(presence_penalty, -1e6, 1e6, "presence_penalty");
  check_in(frequency_penalty, -1e6, 1e6, "frequency_penalty");
  check_in(n_top, -1, INT32_MAX, "n_top");
  SampleRequest r{};
  r.temperature = static_cast<float>(temperature);
  r.top_k = static_cast<int32_t>(top_k);
  r.top_p = static_cast<float>(top_p);
  r.min_p = static_cast<float>(min_p);
  r.repetition_penalty = static_cast<float>(repetition_penalty);
  r.presence_penalty = static_cast<float>(presence_penalty);
  r.frequency_penalty = static_cast<float>(frequency_penalty);
  r.seed = seed;
  r.position = position;
  r.choice = choice;
  r.n_top = n_top;
  return r;
}

void set_bias(Sampler& sampler, const std::optional<Ints>& tokens, const std::optional<Floats>& values) {
  if (!tokens && !values) return;
  check(tokens && values && tokens->size() == values->size(), "bias_tokens and bias_values need the same length");
  for (size_t i = 0; i < tokens->size(); ++i) {
    check_token(tokens->data()[i], INT32_MAX);
    const float value = values->data()[i];
    check(std::isfinite(value) || (std::isinf(value) && value < 0), "a bias must be finite or -inf");
    sampler.bias.push_back({tokens->data()[i], value});
  }
}

void set_mask(Sampler& sampler, const std::optional<Words>& mask) {
  if (!mask) {
    sampler.mask.clear();
    return;
  }
  check(mask->size() >= 1, "mask has no words; give None to allow every token");
  sampler.mask.assign(mask->data(), mask->data() + mask->size());
}

nb::tuple sample_with(Sampler& sampler, const Floats& logits, const std::optional<Words>& mask) {
  check(logits.ndim() == 1 && logits.size() >= 1 && logits.size() <= INT32_MAX, "logits must be [vocab_size]");
  const int64_t vocab_size = static_cast<int64_t>(logits.size());
  check_sampler(sampler, vocab_size);
  SampleRequest r = sampler.request(logits.data(), vocab_size);
  if (mask) {
    check_mask(mask->size(), vocab_size);
    r.mask = mask->data();
  }
  SampleResult result = empty_result(sampler);
  auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(sample_scratch_floats(vocab_size)));
  {
    NativeSection native;
    result.status = kernels().sampling.sample(r, scratch.get(), &result.chosen, result.top.data());
  }
  if (result.status == SampleStatus::ok) sampler.accept(result.chosen.token);
  return to_tuple(result);
}

nb::tuple sample(const Floats& logits, double temperature, int64_t top_k, double top_p, double min_p,
                 double repetition_penalty, double presence_penalty, double frequency_penalty, uint64_t seed,
                 uint64_t position, uint32_t choice, int32_t n_top, const std::optional<Words>& mask,
                 const std::optional<Ints>& bias_tokens, const std::optional<Floats>& bias_values,
                 const std::optional<Ints>& count_tokens, const std::optional<Ints>& count_outputs) {
  Sampler sampler;
  sampler.settings = make_settings(temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                                   frequency_penalty, seed, position, choice, n_top);
  set_bias(sampler, bias_tokens, bias_values);
  if (count_tokens || count_outputs) {
    check(count_tokens && count_outputs && count_tokens->size() == count_outputs->size(),
          "count_tokens and count_outputs need the same length");
    for (size_t i = 0; i < count_tokens->size(); ++i) {
      check_token(count_tokens->data()[i], INT32_MAX);
      check(count_outputs->data()[i] >= 0, "a count must not be negative");
      sampler.counts.push_back({count_tokens->data()[i], count_outputs->data()[i]});
    }
  }
  return sample_with(sampler, logits, mask);
}

nb::tuple score_rows(const Floats& logits, const Ints& targets, int32_t n_top) {
  check(logits.ndim() == 2 && logits.shape(1) >= 1 && logits.shape(1) <= INT32_MAX, "logits must be [rows, vocab_size]");
  check(targets.ndim() == 1 && targets.size() == logits.shape(0), "targets must be [rows]");
  const size_t n_rows = logits.shape(0);
  const int64_t vocab_size = static_cast<int64_t>(logits.shape(1));
  check_in(n_top, 0, static_cast<double>(vocab_size), "n_top");
  for (size_t i = 0; i < n_rows; ++i) check_token(targets.data()[i], vocab_size);
  const size_t wanted = static_cast<size_t>(n_top);
  auto finite = new_array<bool>({n_rows});
  FloatResult logprobs = new_array<float>({n_rows});
  IntResult greedy = new_array<int32_t>({n_rows});
  IntResult top_tokens = new_array<int32_t>({n_rows, wanted});
  FloatResult top_logprobs = new_array<float>({n_rows, wanted});
  std::vector<TokenLogprob> top(wanted);
  auto scratch = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(sample_scratch_floats(vocab_size)));
  {
    NativeSection native;
    for (size_t row = 0; row < n_rows; ++row) {
      Scored scored{};
      const SampleStatus status =
          kernels().sampling.score(logits.data() + static_cast<int64_t>(row) * vocab_size, vocab_size, targets.data()[row],
                                   n_top, scratch.get(), &scored, top.data());
      finite.data()[row] = status == SampleStatus::ok;
      logprobs.data()[row] = finite.data()[row] ? scored.logprob : std::nanf("");
      greedy.data()[row] = scored.greedy;
      for (size_t i = 0; i < wanted; ++i) {
        top_tokens.data()[row * wanted + i] = finite.data()[row] ? top[i].token : -1;
        top_logprobs.data()[row * wanted + i] = finite.data()[row] ? top[i].logprob : std::nanf("");
      }
    }
  }
  return nb::make_tuple(finite, logprobs, greedy, top_tokens, top_logprobs);
}

nb::tuple philox_words(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  const PhiloxBlock block = philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return nb::make_tuple(block.word[0], block.word[1], block.word[2], block.word[3]);
}

}  // namespace

void check_sampler(const Sampler& sampler, int64_t vocab_size) {
  check(sampler.max_token() < vocab_size, "token " + std::to_string(sampler.max_token()) + " is not in 0.." +
                                              std::to_string(vocab_size - 1));
  if (!sampler.mask.empty()) check_mask(sampler.mask.size(), vocab_size);
  check(sampler.settings.n_top <= vocab_size, "n_top " + std::to_string(sampler.settings.n_top) + " is not in -1.." +
                                                  std::to_string(vocab_size));
}

SampleResult empty_result(const Sampler& sampler) {
  SampleResult result;
  if (sampler.settings.n_top > 0) result.top.resize(static_cast<size_t>(sampler.settings.n_top));
  return result;
}

nb::tuple to_tuple(const SampleResult& result) {
  const size_t n_found = result.status == SampleStatus::ok ? result.top.size() : 0;
  nb::list top;
  for (size_t i = 0; i < n_found; ++i) top.append(nb::make_tuple(result.top[i].token, result.top[i].logprob));
  return nb::make_tuple(name_of(result.status), result.chosen.token, result.chosen.logprob, top);
}

void bind_sampling(nb::module_& m) {
  m.def("sample", &sample, nb::arg("logits"), nb::kw_only(), nb::arg("temperature") = 1.0, nb::arg("top_k") = 0,
        nb::arg("top_p") = 1.0, nb::arg("min_p") = 0.0, nb::arg("repetition_penalty") = 1.0,
        nb::arg("presence_penalty") = 0.0, nb::arg("frequency_penalty") = 0.0, nb::arg("seed") = 0,
        nb::arg("position") = 0, nb::arg("choice") = 0, nb::arg("n_top") = -1, nb::arg("mask") = nb::none(),
        nb::arg("bias_tokens") = nb::none(), nb::arg("bias_values") = nb::none(), nb::arg("count_tokens") = nb::none(),
        nb::arg("count_outputs") = nb::none(),
        "Choose a token from logits [vocab_size] -> (status, token, logprob, [(token, logprob), ...] of the best); status "
        "is 'ok', 'nonfinite' or 'all_masked', and the token -1 unless it is 'ok'.");
  nb::class_<Sampler>(m, "Sampler", "The settings of one choice and what it remembers between its tokens.")
      .def(
          "__init__",
          [](Sampler* self, const Ints& prompt_ids, double temperature, int64_t top_k, double top_p, double min_p,
             double repetition_penalty, double presence_penalty, double frequency_penalty, uint64_t seed,
             uint32_t choice, int32_t n_top, const std::optional<Ints>& bias_tokens,
             const std::optional<Floats>& bias_values) {
            new (self) Sampler();
            self->settings = make_settings(temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                                           frequency_penalty, seed, prompt_ids.size(), choice, n_top);
            set_bias(*self, bias_tokens, bias_values);
            for (size_t i = 0; self->is_penalised() && i < prompt_ids.size(); ++i) {
              check_token(prompt_ids.data()[i], INT32_MAX);
              self->see(prompt_ids.data()[i], false);
            }
          },
          nb::arg("prompt_ids"), nb::kw_only(), nb::arg("temperature") = 1.0, nb::arg("top_k") = 0,
          nb::arg("top_p") = 1.0, nb::arg("min_p") = 0.0, nb::arg("repetition_penalty") = 1.0,
          nb::arg("presence_penalty") = 0.0, nb::arg("frequency_penalty") = 0.0, nb::arg("seed") = 0,
          nb::arg("choice") = 0, nb::arg("n_top") = -1, nb::arg("bias_tokens") = nb::none(),
          nb::arg("bias_values") = nb::none())
      .def("sample", &sample_with, nb::arg("logits"), nb::arg("mask") = nb::none(),
           "Choose the next token as the function `sample` does, and remember it.")
      .def("set_mask", &set_mask, nb::arg("mask").none(),
           "Allow only some tokens from now on: bit t % 32 of word t // 32 is token t; None allows all. The words are "
           "copied.")
      .def_prop_ro("position", [](const Sampler& self) { return self.settings.position; },
                   "Position of the token to be chosen next.");
  m.def("score_rows", &score_rows, nb::arg("logits"), nb::arg("targets"), nb::arg("n_top") = 0,
        "Log-probabilities of targets [rows] under logits [rows, vocab_size] -> (finite, logprobs, greedy tokens, "
        "top tokens [rows, n_top], top logprobs). A row that is not finite has NaN and -1.");
  m.def("philox", &philox_words, nb::arg("counter"), nb::arg("key"),
        "Philox4x32-10 of four counter words and two key words.");
  m.def("philox_uniform", &philox_uniform, nb::arg("seed"), nb::arg("choice"), nb::arg("position"), nb::arg("stream") = 0,
        "The uniform number in [0, 1) of one decision; stream 0 is the one `sample` draws with.");
}

}  // namespace capax
