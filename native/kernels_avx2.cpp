#include "isa/avx2.h"

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

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {
    Avx2::name,
    "x86-64 with AVX2, FMA, F16C",
    matmul_kernels<Avx2>(),
    attention_kernels<Avx2>(),
    uniform_kernels<Avx2>(),
    landmark_kernels<Avx2>(),
    norm_kernels<Avx2>(),
    sampling_kernels<Avx2>(),
    pq_kernels<Avx2>(),
    probe_kernels<Avx2>(),
};

}  // namespace capax
