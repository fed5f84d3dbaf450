// One registration function per concern, called by module.cpp.
#pragma once

#include <nanobind/nanobind.h>

namespace capax {

void bind_norms(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_weights(nanobind::module_& m);
void bind_probe(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_strings(nanobind::module_& m);

}  // namespace capax
