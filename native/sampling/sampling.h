// From logits to a token.
#pragma once

#include <stdint.h>

namespace capax {

struct SamplingKernels {};

}  // namespace capax
