// Measures what this machine can do.
#pragma once

#include <stdint.h>

namespace capax {

struct ProbeKernels {};

}  // namespace capax
