// How the bindings of programs and of sampling share a sampler's results.
#pragma once

#include <nanobind/nanobind.h>

#include "sampling/sampler.h"

namespace capax {

// Throws std::invalid_argument if the sampler refers to a token outside the vocabulary.
void check_sampler(const Sampler& sampler, int64_t vocab_size);
// A result with room for the best tokens the sampler wants.
SampleResult empty_result(const Sampler& sampler);
// (status, token, logprob, [(token, logprob), ...])
nanobind::tuple to_tuple(const SampleResult& result);

}  // namespace capax
