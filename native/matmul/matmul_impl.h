// Kernels over packed weights, written once for every instruction set.
#pragma once

#include <string.h>

#include "isa/isa.h"
#include "matmul/dot.h"
#if defined(__AVX512VNNI__)
#include "matmul/dot_avx512.h"
#include "matmul/quantize_avx512.h"
#elif defined(__AVX2__)
#include "matmul/dot_avx2.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "matmul/dot_neon.h"
#endif
#include "matmul/formats.h"
#include "matmul/matmul.h"

namespace {

// ---- activations ---------------------------------------------------------------------------

// One block: q = round(x * (127 / amax)), nearest even. A block whose amax is at most 2^-100
// becomes zeros (127 / amax would overflow); a block with a NaN or an infinity gets
// d = s = NaN and q = 0.
template <class Isa>
inline void quantize_block(const float* x, int64_t entry, const capax::Q8Rows& out) {
  using F = typename Isa::F;
  const F lo = Isa::load(x), hi = Isa::load(x + 16);
  const float amax = Isa::hmax(Isa::max(Isa::abs(lo), Isa::abs(hi)));
  const float poison = Isa::hsum(Isa::fma(hi, Isa::zero(), Isa::mul(lo, Isa::zero())));  // 0 or NaN
  const bool finite = poison == 0.0f;
  const float scale = amax > 0x1p-100f ? 127.0f / amax : 0.0f;
  int8_t* q = out.q + 32 * entry;
  int32_t sum_lo = 0, sum_hi = 0;
  if (finite) {
    const F qlo = Isa::round(Isa::mul(lo, Isa::set1(scale))), qhi = Isa::round(Isa::mul(hi, Isa::set1(scale)));
    Isa::store_i8(q, Isa::to_i32(qlo));
    Isa::store_i8(q + 16, Isa::to_i32(qhi));
    sum_lo = static_cast<int32_t>(Isa::hsum(qlo));  // small integers: exact in any order
    sum_hi = static_cast<int32_t>(Isa::hsum(qhi));
  } else {
    memset(q, 0, 32);
  }
  const float d = finite ? (scale > 0.0f ? amax / 127.0f : 0.0f) : __builtin_nanf("");
  out.d[entry] = d;
  out.s[entry] = d * static_cast<float>(sum_lo + sum_hi);
  out.n32[entry] = -(sum_lo + sum_hi);
  out.n16[2 * entry] = -sum_lo;
  out.n16[2 * entry + 1] = -sum_hi;
}

// n <= 16 blocks, `stride` floats apart, to entries `entry_stride` apart. Instruction sets that
// can reduce sixteen vectors at once override this.
template <class Isa>
struct QuantizeBlocks {
  static inline void run(const float* x, int64_t stride, int n, int64_t entry, int64_t entry_stride,
                         const capax::Q8Rows& out) {
    for (int i = 0; i < n; ++i) quantize_block<Isa>(x + i * stride, entry + i * entry_stride, out);
  }
};
#if defined(__AVX512VNNI__)
template <>
struct QuantizeBlocks<Avx512> {
  static inline void run(const float* x, int64_t stride, int n, int64_t entry, int64_t entry_stride,
                         const capax::Q8Rows& out) {
    quantize_blocks_avx512(x, stride, n, entry, entry_stride, out);
  }
};
#endif

template <class Isa>
void quantize_rows(const float* x, int64_t ldx, int64_t n_tokens, int64_t n_in, int64_t t_begin, int64_t t_end,
                   capax::Q8Rows out) {
  const int64_t n_blocks = n_in / 32;
  for (int64_t t = t_begin; t < t_end;) {
    const int64_t t0 = t / capax::kTokenTile * capax::kTokenTile;
    const int64_t width = n_tokens - t0 < capax::kTokenTile ? n_tokens - t0 : capax::kTokenTile;
    const int64_t last = t0 + width < t_end ? t0 + width : t_end;
    if (last - t == capax::kTokenTile) {  // a whole tile: one block of all its tokens at a time
      for (int64_t b = 0; b < n_blocks; ++b)
        QuantizeBlocks<Isa>::run(x + t * ldx + 32 * b, ldx, 16, t0 * n_blocks + b * width, 1, out);
      t = last;
    } else {  // single tokens: sixteen blocks of a row at a time
      for (int64_t b = 0; b < n_blocks; b += 16)
        QuantizeBlocks<Isa>::run(x + t * ldx + 32 * b, 32, n_blocks - b < 16 ? static_cast<int>(n_blocks - b) : 16,
                                 t0 * n_blocks + b * width + (t - t0), width, out);
      ++t;
    }
  }
}

// ---- integer encodings ---------------------------------------------------------------------

template <class Isa>
inline void put(float* y, typename Isa::F acc, int n_rows, bool accumulate) {
  if (n_rows == 16) {
    Isa::store(y, accumulate ? Isa::add(Isa::load(y), acc) : acc);
  } else {
    Isa::store_n(y, accumulate ? Isa::add(Isa::load_n(y, n_rows, 0.0f), acc) : acc, n_rows);
  }
}

// The scales of one block and the float step that adds a token's dot product.
template <class Isa, class Fmt>
struct Scales {
  using F = typename Isa::F;
  using I = typename Isa::I;
  F d, m;          // plain: as stored; Q4_K, Q5_K: d * scale and dmin * min, both exact
  I s0, s1, m0, m1;  // 16-wide sub-blocks: integer scales and mins

  inline CAPAX_ALWAYS_INLINE Scales(const uint8_t* head, const uint8_t* block) {
    d = Isa::load_f16(reinterpret_cast<const uint16_t*>(head));
    if constexpr (Fmt::has_min) m = Isa::load_f16(reinterpret_cast<const uint16_t*>(head + 32));
    if constexpr (Fmt::is_k && !Fmt::sub16) {  // 6-bit scales: never negative as int8
      d = Isa::mul(d, Isa::load_i8(reinterpret_cast<const int8_t*>(block)));
      m = Isa::mul(m, Isa::load_i8(reinterpret_cast<const int8_t*>(block + 16)));
    }
    if constexpr (Fmt::sub16 && Fmt::has_min) {
      s0 = Dot<Isa>::low4(block), m0 = Dot<Isa>::high4(block);
      s1 = Dot<Isa>::low4(block + 16), m1 = Dot<Isa>::high4(block + 16);
    }
    if constexpr (Fmt::sub16 && !Fmt::has_min) {
      s0 = Isa::to_i32(Isa::load_i8(reinterpret_cast<const int8_t*>(block)));
      s1 = Isa::to_i32(Isa::load_i8(reinterpret_cast<const int8_t*>(block + 16)));
    }
  }
  inline CAPAX_ALWAYS_INLINE F step(F acc, I dot, float dx, float s) const {
    acc = Isa::fma(Isa::from_i32(dot), Isa::mul(d, Isa::set1(dx)), acc);
    if constexpr (Fmt::has_min && Fmt::is_k) return Isa::fnma(m, Isa::set1(s), acc);
    if constexpr (Fmt::has_min) return Isa::fma(m, Isa::set1(s), acc);
    return acc;
  }
  inline CAPAX_ALWAYS_INLINE F step16(F acc, I lo, I hi, float dx, const int32_t* n16) const {
    const I dot = Isa::iadd(Isa::imul(s0, lo), Isa::imul(s1, hi));
    acc = Isa::fma(Isa::from_i32(dot), Isa::mul(d, Isa::set1(dx)), acc);
    if constexpr (Fmt::has_min) {  // n16 carries the minus sign of the minimum
      const I min = Isa::iadd(Isa::imul(m0, Isa::iset1(n16[0])), Isa::imul(m1, Isa::iset1(n16[1])));
      acc = Isa::fma(Isa::from_i32(min), Isa::mul(m, Isa::set1(dx)), acc);
    }
    return acc;
  }
};

// One group times N tokens of a tile that is `width` tokens wide. Bytes `prefetch` ahead of each
// block are fetched on the way, when this is the first use of a group.
//
// Per block and token: 8 dot products of 64 bytes, one conversion, one multiplication, one or two
// fused multiply-adds; 10 or 11 of them share the two multiplying pipes, so at most 8/10 (no
// minimum) or 8/11 (minimum) of the dot product peak can be reached. Measured on one core of an
// AMD Zen 5 at 4.2 GHz (2026-11-22, AVX-512, 512 tokens, 576 and 1,536 inputs, share of the
// probed peak of 545 GMAC/s): Q4_1 0.65 to 0.67, Q8_0 0.70 to 0.72, Q4_0 0.70 to 0.73, Q4_K 0.65,
// Q5_0 0.66, Q6_K 0.57, Q2_K 0.48. One token is bound by memory: 48 to 52 GB/s on one core where
// the probe reads 48 to 53, 55 to 60 on two where it reads 60 to 66 (98 MB of Q4_1 or Q8_0);
// from L2 it runs at 120 GB/s on one core.
template <class Isa, class Fmt, int N>
inline CAPAX_ALWAYS_INLINE void group_times_tokens(const uint8_t* group, int64_t n_blocks,
                                                             const capax::Q8Rows& x, int64_t width, float* y,
                                                             int64_t ldy, int n_rows, bool accumulate,
                                                             int64_t prefetch) {
  using F = typename Isa::F;
  using I = typename Isa::I;
  constexpr int Step = N % Dot<Isa>::step == 0 ? Dot<Isa>::step : N;  // tokens whose dot products run side by side
  F acc[N];
  for (int n = 0; n < N; ++n) acc[n] = Isa::zero();
  const int8_t* q = x.q;
  const float *d = x.d, *s = x.s;
  const int32_t *n32 = x.n32, *n16 = x.n16;
  const auto block_times_tokens = [&](const uint8_t* head, const uint8_t* block)
      CAPAX_ALWAYS_INLINE {
    for (int64_t line = 0; line < Fmt::block_nbytes; line += 64) __builtin_prefetch(block + prefetch + line, 0, 3);
    const Scales<Isa, Fmt> scales(head, block);
    typename Dot<Isa>::Block w;
    Dot<Isa>::template unpack<Fmt>(block + (Fmt::is_k ? 32 : Fmt::floats_nbytes), w);
    const auto step = [&](int n) CAPAX_ALWAYS_INLINE {
      if constexpr (Fmt::sub16) {
        I lo[Step], hi[Step];
        Dot<Isa>::template dot16<Fmt, Step>(w, q + 32 * n, n16 + 2 * n, lo, hi);
        for (int i = 0; i < Step; ++i)
          acc[n + i] = scales.step16(acc[n + i], lo[i], hi[i], d[n + i], n16 + 2 * (n + i));
      } else {
        I dot[Step];
        Dot<Isa>::template dot32<Fmt, Step>(w, q + 32 * n, n32 + n, dot);
        for (int i = 0; i < Step; ++i) acc[n + i] = scales.step(acc[n + i], dot[i], d[n + i], s[n + i]);
      }
    };
    if constexpr (Dot<Isa>::sums_in_registers) {
#pragma GCC unroll 16
      for (int n = 0; n < N; n += Step) step(n);
    } else {
#pragma GCC unroll 1
      for (int n = 0; n < N; n += Step) step(n);
    }
    q += 32 * width, d += width, s += width, n32 += width, n16 += 2 * width;
  };
  if constexpr (Fmt::is_k) {
    for (int64_t b = 0; b < n_blocks; b += 8) {
      const uint8_t* head = group;
      group += Fmt::head_nbytes;
      for (int i = 0; i < 8; ++i, group += Fmt::block_nbytes) block_times_tokens(head, group);
    }
  } else {
    for (int64_t b = 0; b < n_blocks; ++b, group += Fmt::block_nbytes) block_times_tokens(group, group);
  }
  for (int n = 0; n < N; ++n) put<Isa>(y + n * ldy, acc[n], n_rows, accumulate);
}

template <int N>
struct Count {
  static constexpr int value = N;
};

template <class Isa, class Fmt>
void matmul(const capax::MatmulArgs& a) {
  const int64_t n_blocks = a.n_in / 32, group_nbytes = Fmt::group_nbytes(a.n_in);
  // Tokens are taken in chunks whose activations stay in half of a 1 MiB L2, so that every
  // group is read from memory once per chunk and the chunk from L2 once per group.
  int64_t chunk = (512 * 1024 / (a.n_in + 1)) / capax::kTokenTile * capax::kTokenTile;
  if (chunk < capax::kTokenTile) chunk = capax::kTokenTile;
  // Whole groups, about 12 KiB: far enough to hide memory, near enough to still be in L1.
  const int64_t ahead = group_nbytes * (group_nbytes < 12288 ? 12288 / group_nbytes : 1);
  for (int64_t c = 0; c < a.n_tokens; c += chunk) {
    const int64_t c_end = c + chunk < a.n_tokens ? c + chunk : a.n_tokens;
    for (int64_t g = a.group_begin; g < a.group_end; ++g) {
      const uint8_t* group = a.groups + (g - a.group_begin) * group_nbytes;
      const int n_rows = a.n_out - 16 * g < 16 ? static_cast<int>(a.n_out - 16 * g) : 16;
      for (int64_t t0 = c; t0 < c_end; t0 += capax::kTokenTile) {
        const int64_t width = a.n_tokens - t0 < capax::kTokenTile ? a.n_tokens - t0 : capax::kTokenTile;
        const int64_t first = t0 * n_blocks;
        const capax::Q8Rows tile = {a.x.q + 32 * first, a.x.d + first, a.x.s + first, a.x.n32 + first,
                                    a.x.n16 + 2 * first};
        int64_t n = 0;
        const auto run = [&](auto count) {
          constexpr int N = decltype(count)::value;
          for (; n + N <= width; n += N) {
            const capax::Q8Rows x = {tile.q + 32 * n, tile.d + n, tile.s + n, tile.n32 + n, tile.n16 + 2 * n};
            group_times_tokens<Isa, Fmt, N>(group, n_blocks, x, width, a.y + (t0 + n) * a.ldy + 16 * g, a.ldy,
                                            n_rows, a.accumulate, t0 == c && n == 0 ? ahead : 0);
          }
        };
        run(Count<Dot<Isa>::max_tokens>{});
        if constexpr (Dot<Isa>::max_tokens > 8) run(Count<8>{});
        run(Count<4>{});
        run(Count<3>{});
        run(Count<2>{});
        run(Count<1>{});
      }
    }
  }
}

// ---- float encodings -----------------------------------------------------------------------

// A group of floats is [n_in][16 rows]: one load gives input i of 16 rows.
template <class Isa>
struct PackedF32 {
  using T = float;
  static inline typename Isa::F load(const T* p) { return Isa::load(p); }
};
template <class Isa>
struct PackedF16 {
  using T = uint16_t;
  static inline typename Isa::F load(const T* p) { return Isa::load_f16(p); }
};
template <class Isa>
struct PackedBF16 {
  using T = uint16_t;
  static inline typename Isa::F load(const T* p) { return Isa::load_bf16(p); }
};

// G groups times N tokens: G * N independent chains of fused multiply-adds hide the latency
// that the order of inputs imposes on each. With 4 groups and 6 tokens the accumulators fill the
// 32 registers of AVX-512, and two loads in three are shared by all of them (MiniLM on two
// threads, 2026-11-23: 1.26 times the speed of 4 tokens).
template <class Isa, class Packed, int G, int N>
inline CAPAX_ALWAYS_INLINE void groups_times_tokens_float(const capax::MatmulArgs& a, int64_t g,
                                                                    int64_t t) {
  using F = typename Isa::F;
  const typename Packed::T* w =
      reinterpret_cast<const typename Packed::T*>(a.groups) + (g - a.group_begin) * a.n_in * 16;
  const float* x = a.xf + t * a.ldx;
  F acc[G][N];
  for (int k = 0; k < G; ++k)
    for (int n = 0; n < N; ++n) acc[k][n] = Isa::zero();
  for (int64_t i = 0; i < a.n_in; ++i) {
    F wk[G];
    for (int k = 0; k < G; ++k) wk[k] = Packed::load(w + (k * a.n_in + i) * 16);
    for (int n = 0; n < N; ++n) {
      const F xn = Isa::set1(x[n * a.ldx + i]);
      for (int k = 0; k < G; ++k) acc[k][n] = Isa::fma(wk[k], xn, acc[k][n]);
    }
  }
  for (int k = 0; k < G; ++k) {
    const int64_t row = 16 * (g + k);
    const int n_rows = a.n_out - row < 16 ? static_cast<int>(a.n_out - row) : 16;
    for (int n = 0; n < N; ++n) put<Isa>(a.y + (t + n) * a.ldy + row, acc[k][n], n_rows, a.accumulate);
  }
}

template <class Isa, class Packed>
void matmul_float(const capax::MatmulArgs& a) {
  const auto tokens = [&](auto groups, int64_t g) {
    constexpr int G = decltype(groups)::value;
    int64_t t = 0;
    for (; t + 6 <= a.n_tokens; t += 6) groups_times_tokens_float<Isa, Packed, G, 6>(a, g, t);
    for (; t + 4 <= a.n_tokens; t += 4) groups_times_tokens_float<Isa, Packed, G, 4>(a, g, t);
    for (; t < a.n_tokens; ++t) groups_times_tokens_float<Isa, Packed, G, 1>(a, g, t);
  };
  int64_t g = a.group_begin;
  for (; g + 4 <= a.group_end; g += 4) tokens(Count<4>{}, g);
  for (; g < a.group_end; ++g) tokens(Count<1>{}, g);
}

template <class Isa>
constexpr capax::MatmulKernels matmul_kernels() {
  capax::MatmulKernels k{};
  k.quantize_rows = &quantize_rows<Isa>;
  k.f32 = &matmul_float<Isa, PackedF32<Isa>>;
  k.f16 = &matmul_float<Isa, PackedF16<Isa>>;
  k.bf16 = &matmul_float<Isa, PackedBF16<Isa>>;
  k.q8_0 = &matmul<Isa, FormatQ8_0>;
  k.q4_0 = &matmul<Isa, FormatQ4_0>;
  k.q4_1 = &matmul<Isa, FormatQ4_1>;
  k.q5_0 = &matmul<Isa, FormatQ5_0>;
  k.q5_1 = &matmul<Isa, FormatQ5_1>;
  k.q2_k = &matmul<Isa, FormatQ2_K>;
  k.q3_k = &matmul<Isa, FormatQ3_K>;
  k.q4_k = &matmul<Isa, FormatQ4_K>;
  k.q5_k = &matmul<Isa, FormatQ5_K>;
  k.q6_k = &matmul<Isa, FormatQ6_K>;
  return k;
}

}  // namespace
