// Writing Q4_K and Q6_K: scales found by a search for the least squared error.
#pragma once

#include <stdint.h>

namespace capax {

// One super-block of 256 weights.
void quantize_q4_k(const float* x, uint8_t* out);  // 144 bytes
void quantize_q6_k(const float* x, uint8_t* out);  // 210 bytes

}  // namespace capax
