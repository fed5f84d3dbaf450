#include "isa/avx512.h"

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

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {
    Avx512::name,
    "x86-64 with AVX-512 F, BW, DQ, VL, VBMI, VNNI",
    matmul_kernels<Avx512>(),
    attention_kernels<Avx512>(),
    uniform_kernels<Avx512>(),
    landmark_kernels<Avx512>(),
    norm_kernels<Avx512>(),
    sampling_kernels<Avx512>(),
    pq_kernels<Avx512>(),
    probe_kernels<Avx512>(),
};

}  // namespace capax
