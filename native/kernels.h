// The table of kernels of one instruction set. One table is chosen at import.
#pragma once

#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/landmark.h"
#include "kv/uniform.h"
#include "matmul/matmul.h"
#include "norms/norms.h"
#include "pq/pq.h"
#include "probe/probe.h"
#include "sampling/sampling.h"

namespace capax {

struct Kernels {
  const char* isa;          // "scalar", "avx2", "avx512", "neon"
  const char* description;  // what the CPU must have
  MatmulKernels matmul;
  AttentionKernels attention;
  UniformKernels uniform;
  LandmarkKernels landmark;
  NormKernels norms;
  SamplingKernels sampling;
  PQKernels pq;
  ProbeKernels probe;
};

// The tables this build contains that this CPU can run, the widest first.
std::vector<const Kernels*> supported_kernels();
// The chosen table: the widest, or the one CAPAX_ISA names (set by `select_kernels`).
const Kernels& kernels();
// Choose by name; returns false if this build or CPU does not have it.
bool select_kernels(const std::string& isa);

}  // namespace capax
