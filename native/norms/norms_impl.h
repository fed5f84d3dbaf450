#pragma once

#include "norms/norms.h"

namespace {

template <class Isa>
constexpr capax::NormKernels norm_kernels() {
  return {};
}

}  // namespace
