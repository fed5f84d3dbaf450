#include "isa/neon.h"

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

extern const Kernels kernels_neon;
const Kernels kernels_neon = {
    Neon::name,
    "AArch64 with dot products and half floats",
    matmul_kernels<Neon>(),
    attention_kernels<Neon>(),
    uniform_kernels<Neon>(),
    landmark_kernels<Neon>(),
    norm_kernels<Neon>(),
    sampling_kernels<Neon>(),
    pq_kernels<Neon>(),
    probe_kernels<Neon>(),
};

}  // namespace capax
