#pragma once

#include "matmul/matmul.h"

namespace {

template <class Isa>
constexpr capax::MatmulKernels matmul_kernels() {
  return {};
}

}  // namespace
