// Row-wise operations: RMS norm, rotary embedding, SwiGLU.
#pragma once

#include <stdint.h>

namespace capax {

struct NormKernels {};

}  // namespace capax
