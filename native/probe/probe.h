// Measures what this machine can do: the rooflines that speeds are stated against.
#pragma once

#include <stdint.h>

namespace capax {

// Inner loops per instruction set, on one thread. Results are returned so that no loop is removed.
struct ProbeKernels {
  // Reads every byte of a 64-byte aligned buffer once; nbytes is a multiple of 1024.
  int32_t (*read_sum)(const uint8_t* data, int64_t nbytes);
  // n rounds of `int8_macs_per_round` multiply-adds of int8, operands in registers.
  int32_t (*int8_dots)(int64_t n_rounds);
  int64_t int8_macs_per_round;
  // n rounds of `f32_fmas_per_round` fused multiply-adds of float32, operands in registers.
  float (*f32_fmas)(int64_t n_rounds);
  int64_t f32_fmas_per_round;
};

// What was measured: the best pass says what the machine can do, the median what it did.
struct Measured {
  double best, median;
};

// GB/s (1e9 bytes) of reading a buffer of `nbytes` in all, split among `n_threads`, for about `seconds`.
Measured probe_read_gbps(int64_t nbytes, int n_threads, double seconds);
// 1e9 int8 multiply-adds per second of the widest dot product instruction in use.
Measured probe_int8_gmacs(int n_threads, double seconds);
// 1e9 float32 operations per second; a fused multiply-add counts two.
Measured probe_f32_gflops(int n_threads, double seconds);

}  // namespace capax
