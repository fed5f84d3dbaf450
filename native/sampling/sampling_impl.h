#pragma once

#include "sampling/sampling.h"

namespace {

template <class Isa>
constexpr capax::SamplingKernels sampling_kernels() {
  return {};
}

}  // namespace
