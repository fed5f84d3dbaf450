// Grouped-query attention over a paged KV cache.
#pragma once

#include <stdint.h>

namespace capax {

struct AttentionKernels {};

}  // namespace capax
