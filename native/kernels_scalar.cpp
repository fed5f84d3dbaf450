#include "isa/scalar.h"

#include "kernels.h"

#include "attention/attention_impl.h"
#include "attention/landmark_impl.h"
#include "kv/uniform_impl.h"
#include "matmul/matmul_impl.h"
#include "norms/norms_impl.h"
#include "pq/pq_impl.h"
#include "probe/probe_impl.h"
#include "sampling/sampling_impl.h"

namespace capax {

extern const Kernels kernels_scalar;
const Kernels kernels_scalar = {
    Scalar::name,
    "any CPU",
    matmul_kernels<Scalar>(),
    attention_kernels<Scalar>(),
    uniform_kernels<Scalar>(),
    landmark_kernels<Scalar>(),
    norm_kernels<Scalar>(),
    sampling_kernels<Scalar>(),
    pq_kernels<Scalar>(),
    probe_kernels<Scalar>(),
};

}  // namespace capax
