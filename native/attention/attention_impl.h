#pragma once

#include "attention/attention.h"

namespace {

template <class Isa>
constexpr capax::AttentionKernels attention_kernels() {
  return {};
}

}  // namespace
