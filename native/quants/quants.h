// Encoded rows to float32 and back. Dequantising equals the `gguf` package in every bit.
#pragma once

#include <stdint.h>

#include "quants/encoding.h"

namespace capax {

// n weights (a multiple of the block size) of `encoding` at `bytes` to float32.
void dequantize(Encoding encoding, const uint8_t* bytes, int64_t n, float* out);

// True for the encodings `quantize` can write.
bool can_quantize(Encoding encoding);
// n float32 weights (a multiple of the block size) to `encoding`.
void quantize(Encoding encoding, const float* weights, int64_t n, uint8_t* out);

}  // namespace capax
