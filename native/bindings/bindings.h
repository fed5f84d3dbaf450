// One registration function per concern, called by module.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace capax {}  // namespace capax
