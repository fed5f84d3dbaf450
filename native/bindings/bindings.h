// One registration function per concern, called by module.cpp.
#pragma once

#include <nanobind/nanobind.h>

#include "parallel/float_environment.h"

namespace capax {

// Around native work: other Python threads run meanwhile, and floats behave as everywhere in
// capax, whatever the calling thread has set.
struct NativeSection {
  nanobind::gil_scoped_release release;
  DefaultFloatEnvironment environment;
};

void bind_norms(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_landmark(nanobind::module_& m);
void bind_weights(nanobind::module_& m);
void bind_probe(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);
void bind_strings(nanobind::module_& m);
void bind_coding(nanobind::module_& m);
void bind_codec(nanobind::module_& m);
void bind_retention(nanobind::module_& m);
void bind_uniform(nanobind::module_& m);
void bind_pq(nanobind::module_& m);

}  // namespace capax
