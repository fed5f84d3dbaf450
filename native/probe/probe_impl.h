#pragma once

#include "probe/probe.h"

namespace {

template <class Isa>
constexpr capax::ProbeKernels probe_kernels() {
  return {};
}

}  // namespace
