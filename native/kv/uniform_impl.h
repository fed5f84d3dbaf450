#pragma once

#include <math.h>

#include "attention/attention.h"
#include "isa/isa.h"
#include "kv/uniform.h"

namespace {

// ---- scales and zeros ---------------------------------------------------------------------------

// The range of values as it is gathered: negated minimum, maximum, and NaN if one is not finite.
template <class Isa>
struct UniformRange {
  typename Isa::F below, above, poison;
};

template <class Isa>
static inline UniformRange<Isa> empty_range() {
  const auto lowest = Isa::set1(-__builtin_inff());
  return {lowest, lowest, Isa::zero()};
}

template <class Isa>
static inline void widen(UniformRange<Isa>& range, typename Isa::F x) {
  range.below = Isa::max(Isa::sub(Isa::zero(), x), range.below);
  range.above = Isa::max(x, range.above);
  range.poison = Isa::fma(x, Isa::zero(), range.poison);
}

// The 16 columns from `col` on; padding repeats the first of them.
template <class Isa>
static inline typename Isa::F uniform_load(const capax::UniformShape& shape, const float* row, int64_t col) {
  const int64_t valid = shape.n_valid - col;
  return valid >= 16 ? Isa::load(row + col) : Isa::load_n(row + col, static_cast<int>(valid), row[col]);
}

// Stored scale and zero of 16 groups. Adding +0 makes the zero of either sign one number.
template <class Isa>
static inline void store_numbers(typename Isa::F below, typename Isa::F above, typename Isa::F poison, float top,
                                 uint16_t* scales, uint16_t* zeros, int64_t n) {
  using F = typename Isa::F;
  uint16_t halves[16];
  const F low = Isa::add(Isa::sub(Isa::zero(), below), poison);
  const F scale = Isa::add(Isa::div(Isa::sub(above, low), Isa::set1(top)), Isa::zero());
  Isa::store_f16(halves, scale);
  memcpy(scales, halves, static_cast<size_t>(n < 16 ? n : 16) * sizeof(uint16_t));
  Isa::store_f16(halves, Isa::add(low, Isa::zero()));
  memcpy(zeros, halves, static_cast<size_t>(n < 16 ? n : 16) * sizeof(uint16_t));
}

template <class Isa>
static void measure_uniform(const capax::UniformShape& shape, const float* pages, int64_t n_pages, uint16_t* scales,
                            uint16_t* zeros, float*) {
  const float top = static_cast<float>((1 << shape.bits) - 1);
  const int64_t page_floats = shape.n_rows * shape.n_cols;
  if (!shape.by_row) {
    const int64_t n_groups = shape.n_rows / shape.group;
    for (int64_t g = 0; g < n_groups; ++g) {
      for (int64_t col = 0; col < shape.n_cols; col += 16) {
        UniformRange<Isa> range = empty_range<Isa>();
        for (int64_t page = 0; page < n_pages; ++page)
          for (int64_t row = g * shape.group; row < (g + 1) * shape.group; ++row)
            widen<Isa>(range, Isa::load(pages + page * page_floats + row * shape.n_cols + col));
        const int64_t at = g * shape.n_cols + col;
        store_numbers<Isa>(range.below, range.above, range.poison, top, scales + at, zeros + at, 16);
      }
    }
    return;
  }
  const int64_t n_groups = capax::uniform_groups(shape), row_groups = capax::uniform_row_groups(shape);
  float below[16] = {}, above[16] = {}, poison[16] = {};
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t row = g / row_groups, first = g % row_groups * shape.group;
    const int64_t last = first + shape.group < shape.n_valid ? first + shape.group : shape.n_valid;
    UniformRange<Isa> range = empty_range<Isa>();
    for (int64_t page = 0; page < n_pages; ++page)
      for (int64_t col = first; col < last; col += 16)
        widen<Isa>(range, uniform_load<Isa>(shape, pages + page * page_floats + row * shape.n_cols, col));
    const int64_t lane = g % 16;
    below[lane] = Isa::hmax(range.below);
    above[lane] = Isa::hmax(range.above);
    poison[lane] = Isa::hsum(range.poison);
    if (lane == 15 || g == n_groups - 1)
      store_numbers<Isa>(Isa::load(below), Isa::load(above), Isa::load(poison), top, scales + g - lane,
                         zeros + g - lane, lane + 1);
  }
}

// Stored numbers as float32: scales, then zeros from the next multiple of 16 on.
template <class Isa>
static inline const float* uniform_numbers(const capax::UniformShape& shape, const uint16_t* scales,
                                           const uint16_t* zeros, float* to) {
  const int64_t n = capax::uniform_groups(shape), n_padded = (n + 15) / 16 * 16;
  for (int64_t g = 0; g < n; g += 16) {
    uint16_t halves[2][16] = {};
    const size_t nbytes = static_cast<size_t>(n - g < 16 ? n - g : 16) * sizeof(uint16_t);
    memcpy(halves[0], scales + g, nbytes);
    memcpy(halves[1], zeros + g, nbytes);
    Isa::store(to + g, Isa::load_f16(halves[0]));
    Isa::store(to + n_padded + g, Isa::load_f16(halves[1]));
  }
  return to + n_padded;
}

// Goes through the vectors of a page in order: scale and zero of their lanes. By row, a group is a
// number of whole vectors one after another; by column, a row of vectors serves `group` rows.
template <class Isa>
class UniformWalk {
 public:
  UniformWalk(const capax::UniformShape& shape, const float* scales, const float* zeros)
      : scales_(scales), zeros_(zeros), by_row_(shape.by_row), row_(shape.n_cols),
        period_(by_row_ ? shape.n_cols / capax::uniform_row_groups(shape) / 16 : shape.n_cols / 16 * shape.group),
        left_(period_), in_row_(0) {}

  inline void next(typename Isa::F* s, typename Isa::F* z) {
    if (by_row_) {
      *s = Isa::set1(*scales_);
      *z = Isa::set1(*zeros_);
      if (--left_ == 0) left_ = period_, ++scales_, ++zeros_;
      return;
    }
    *s = Isa::load(scales_ + in_row_);
    *z = Isa::load(zeros_ + in_row_);
    in_row_ += 16;
    if (in_row_ == row_) in_row_ = 0;
    if (--left_ == 0) left_ = period_, scales_ += row_, zeros_ += row_;
  }

 private:
  const float *scales_, *zeros_;
  bool by_row_;
  int64_t row_, period_, left_, in_row_;
};

// ---- codes --------------------------------------------------------------------------------------

template <class Isa>
static inline void pack8(const typename Isa::I* q, int32_t bits, uint8_t* to) {
  using I = typename Isa::I;
  const auto store = [&](I a) {
    Isa::store_i8(reinterpret_cast<int8_t*>(to), a);
    to += 16;
  };
  if (bits == 8) {
    for (int v = 0; v < 8; ++v) store(q[v]);
  } else if (bits == 4) {
    for (int v = 0; v < 8; v += 2) store(Isa::ior(q[v], Isa::ishl(q[v + 1], 4)));
  } else {
    const I three = Isa::iset1(3);
    for (int v = 0; v < 8; v += 4) {
      I byte = Isa::izero();
      for (int i = 0; i < 4; ++i) byte = Isa::ior(byte, Isa::ishl(Isa::iand(q[v + i], three), 2 * i));
      store(byte);
    }
    if (bits == 2) return;
    I byte = Isa::izero();
    for (int v = 0; v < 8; ++v) byte = Isa::ior(byte, Isa::ishl(Isa::template ishr<2>(q[v]), v));
    store(byte);
  }
}

template <class Isa>
static void encode_uniform(const capax::UniformShape& shape, const float* page, const uint16_t* scales,
                           const uint16_t* zeros, uint8_t* codes, float* scratch) {
  using F = typename Isa::F;
  UniformWalk<Isa> walk(shape, scratch, uniform_numbers<Isa>(shape, scales, zeros, scratch));
  const F top = Isa::set1(static_cast<float>((1 << shape.bits) - 1));
  const int64_t n_vectors = shape.n_rows * shape.n_cols / 16;
  for (int64_t i = 0; i < n_vectors; i += 8, codes += 16 * shape.bits) {
    typename Isa::I q[8];
    for (int v = 0; v < 8; ++v) {
      F s, z;
      walk.next(&s, &z);
      const F x = Isa::round(Isa::div(Isa::sub(Isa::load(page + 16 * (i + v)), z), s));
      // max(NaN, 0) is 0, and a group without extent takes 0 too.
      const F clipped = Isa::min(Isa::max(x, Isa::zero()), top);
      q[v] = Isa::to_i32(Isa::lt_select(Isa::zero(), s, clipped, Isa::zero()));
    }
    pack8<Isa>(q, shape.bits, codes);
  }
}

// Vectors 0 .. 7 of the codes at `from`.
template <class Isa, int bits>
static inline void unpack8(const uint8_t* from, typename Isa::I* q) {
  if constexpr (bits == 8) {
    for (int v = 0; v < 8; ++v) q[v] = Isa::iload_u8(from + 16 * v);
  } else if constexpr (bits == 4) {
    const auto mask = Isa::iset1(15);
    for (int v = 0; v < 8; v += 2) {
      const auto byte = Isa::iload_u8(from + 8 * v);
      q[v] = Isa::iand(byte, mask);
      q[v + 1] = Isa::template ishr<4>(byte);
    }
  } else {
    const auto mask = Isa::iset1(3);
    for (int v = 0; v < 8; v += 4) {
      const auto byte = Isa::iload_u8(from + 4 * v);
      q[v] = Isa::iand(byte, mask);
      q[v + 1] = Isa::iand(Isa::template ishr<2>(byte), mask);
      q[v + 2] = Isa::iand(Isa::template ishr<4>(byte), mask);
      q[v + 3] = Isa::template ishr<6>(byte);
    }
    if constexpr (bits == 3) {
      const auto byte = Isa::iload_u8(from + 32);
      const auto third = Isa::iset1(4);
      q[0] = Isa::ior(q[0], Isa::iand(Isa::ishl(byte, 2), third));
      q[1] = Isa::ior(q[1], Isa::iand(Isa::ishl(byte, 1), third));
      q[2] = Isa::ior(q[2], Isa::iand(byte, third));
      q[3] = Isa::ior(q[3], Isa::iand(Isa::template ishr<1>(byte), third));
      q[4] = Isa::ior(q[4], Isa::iand(Isa::template ishr<2>(byte), third));
      q[5] = Isa::ior(q[5], Isa::iand(Isa::template ishr<3>(byte), third));
      q[6] = Isa::ior(q[6], Isa::iand(Isa::template ishr<4>(byte), third));
      q[7] = Isa::ior(q[7], Isa::iand(Isa::template ishr<5>(byte), third));
    }
  }
}

// Per 8 vectors: bits / 2 or so loads, 8 to 20 shifts and masks, 8 conversions, 8 fused multiply-adds
// and 8 stores.
template <class Isa, int bits>
static void decode_bits(int64_t n_vectors, const uint8_t* codes, UniformWalk<Isa> walk, float* page) {
  for (int64_t i = 0; i < n_vectors; i += 8, codes += 16 * bits) {
    typename Isa::I q[8];
    unpack8<Isa, bits>(codes, q);
    for (int v = 0; v < 8; ++v) {
      typename Isa::F s, z;
      walk.next(&s, &z);
      Isa::store(page + 16 * (i + v), Isa::fma(Isa::from_i32(q[v]), s, z));
    }
  }
}

template <class Isa>
static void decode_uniform(const capax::UniformShape& shape, const uint8_t* codes, const uint16_t* scales,
                           const uint16_t* zeros, float* page, float* scratch) {
  const UniformWalk<Isa> walk(shape, scratch, uniform_numbers<Isa>(shape, scales, zeros, scratch));
  const int64_t n_vectors = shape.n_rows * shape.n_cols / 16;
  switch (shape.bits) {
    case 2: return decode_bits<Isa, 2>(n_vectors, codes, walk, page);
    case 3: return decode_bits<Isa, 3>(n_vectors, codes, walk, page);
    case 4: return decode_bits<Isa, 4>(n_vectors, codes, walk, page);
    default: return decode_bits<Isa, 8>(n_vectors, codes, walk, page);
  }
}

// ---- rotations ----------------------------------------------------------------------------------

template <class Isa>
static void hadamard_page(float* page, int64_t n_rows, int64_t n_cols, int64_t ld, bool by_row) {
  const int64_t n = by_row ? n_cols : n_rows;
  const float factor = static_cast<float>(1.0 / sqrt(static_cast<double>(n)));
  const auto butterfly = [](float* a, float* b, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const float sum = a[j] + b[j], difference = a[j] - b[j];
      a[j] = sum;
      b[j] = difference;
    }
  };
  for (int64_t half = 1; half < n; half *= 2) {
    for (int64_t i = 0; i < n; i += 2 * half) {
      if (by_row) {
        for (int64_t row = 0; row < n_rows; ++row)
          butterfly(page + row * ld + i, page + row * ld + i + half, half);
      } else {
        for (int64_t r = i; r < i + half; ++r) butterfly(page + r * ld, page + (r + half) * ld, n_cols);
      }
    }
  }
  for (int64_t row = 0; row < n_rows; ++row)
    for (int64_t j = 0; j < n_cols; ++j) page[row * ld + j] *= factor;
}

template <class Isa>
static void rotate_page(float* page, int64_t k_dim, const float* cos, const float* sin, capax::RopeStyle style,
                        bool back) {
  using F = typename Isa::F;
  constexpr int64_t n = capax::kPageTokens;
  const int64_t half = k_dim / 2;
  const bool interleaved = style == capax::RopeStyle::interleaved;
  for (int64_t i = 0; i < half; ++i) {
    float* a = page + (interleaved ? 2 * i : i) * n;
    float* b = page + (interleaved ? 2 * i + 1 : i + half) * n;
    float c[n], s[n];
    for (int64_t j = 0; j < n; ++j) {
      c[j] = cos[j * half + i];
      s[j] = sin[j * half + i];
    }
    for (int64_t j = 0; j < n; j += 16) {
      const F x = Isa::load(a + j), y = Isa::load(b + j), cj = Isa::load(c + j), sj = Isa::load(s + j);
      if (back) {  // the factor that some scalings put on cos and sin goes too
        const F norm = Isa::fma(cj, cj, Isa::mul(sj, sj));
        Isa::store(a + j, Isa::div(Isa::fma(x, cj, Isa::mul(y, sj)), norm));
        Isa::store(b + j, Isa::div(Isa::fnma(x, sj, Isa::mul(y, cj)), norm));
      } else {
        Isa::store(a + j, Isa::fnma(y, sj, Isa::mul(x, cj)));
        Isa::store(b + j, Isa::fma(x, sj, Isa::mul(y, cj)));
      }
    }
  }
}

template <class Isa>
constexpr capax::UniformKernels uniform_kernels() {
  return {measure_uniform<Isa>, encode_uniform<Isa>, decode_uniform<Isa>, hadamard_page<Isa>, rotate_page<Isa>};
}

}  // namespace
