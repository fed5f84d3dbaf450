#include "matmul/pack.h"

#include "matmul/formats.h"
#include "quants/dequantize_block.h"

namespace capax {

namespace {

uint32_t word_at(const uint8_t* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}

// Adds four quants (one vector's lanes of one row) to the planes: w holds them as bytes.
template <class Fmt>
inline void pack_words(const uint8_t* q, int r, uint8_t* planes) {
  uint8_t* p = planes + 4 * r;
  const auto store = [](uint8_t* at, uint32_t w) { memcpy(at, &w, 4); };
  if constexpr (Fmt::bits == 8) {
    for (int v = 0; v < 8; ++v) store(p + 64 * v, word_at(q + 4 * v));
  }
  if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
    for (int k = 0; k < 4; ++k) {
      const uint32_t lo = word_at(q + 4 * k) & 0x0f0f0f0fu, hi = word_at(q + 4 * k + 16) & 0x0f0f0f0fu;
      store(p + 64 * k, lo | hi << 4);
    }
    p += 256;
  }
  constexpr int shift2 = Fmt::bits == 6 ? 4 : 0;
  if constexpr (Fmt::bits == 6 || Fmt::bits == 2 || Fmt::bits == 3) {
    for (int j = 0; j < 2; ++j) {
      uint32_t w = 0;
      for (int i = 0; i < 4; ++i) w |= (word_at(q + 4 * (4 * j + i)) >> shift2 & 0x03030303u) << (2 * i);
      store(p + 64 * j, w);
    }
    p += 128;
  }
  constexpr int shift1 = Fmt::bits == 5 ? 4 : 2;
  if constexpr (Fmt::bits == 5 || Fmt::bits == 3) {
    uint32_t w = 0;
    for (int v = 0; v < 8; ++v) w |= (word_at(q + 4 * v) >> shift1 & 0x01010101u) << v;
    store(p, w);
  }
}

// The inverse of `pack_words`.
template <class Fmt>
inline void unpack_words(const uint8_t* planes, int r, uint8_t* q) {
  for (int v = 0; v < 8; ++v) {
    const uint8_t* p = planes + 4 * r;
    uint32_t w = 0;
    int shift = 0;
    if constexpr (Fmt::bits == 8) w = word_at(p + 64 * v);
    if constexpr (Fmt::bits >= 4 && Fmt::bits < 8) {
      w = word_at(p + 64 * (v % 4)) >> (4 * (v / 4)) & 0x0f0f0f0fu;
      shift = 4;
      p += 256;
    }
    if constexpr (Fmt::bits == 6 || Fmt::bits == 2 || Fmt::bits == 3) {
      w |= (word_at(p + 64 * (v / 4)) >> (2 * (v % 4)) & 0x03030303u) << shift;
      shift += 2;
      p += 128;
    }
    if constexpr (Fmt::bits == 5 || Fmt::bits == 3) w |= (word_at(p) >> v & 0x01010101u) << shift;
    memcpy(q + 4 * v, &w, 4);
  }
}

template <class Fmt>
void pack_group_as(const uint8_t* rows, int64_t row_size, int n_rows, int64_t n_in, uint8_t* group) {
  if (n_rows < 16) memset(group, 0, static_cast<size_t>(Fmt::group_nbytes(n_in)));
  const auto put16 = [](uint8_t* at, uint16_t v) { memcpy(at, &v, 2); };
  BlockView view;
  for (int64_t b = 0; b < n_in / 32; ++b) {
    uint8_t* block = group + Fmt::block_at(b);
    uint8_t* head = Fmt::is_k ? group + Fmt::head_at(b) : block;
    for (int r = 0; r < n_rows; ++r) {
      read_block<Fmt>(rows + r * row_size, b, view);
      put16(head + 2 * r, view.d);
      if constexpr (Fmt::has_min) put16(head + 32 + 2 * r, view.m);
      if constexpr (Fmt::is_k && Fmt::sub16) {
        for (int h = 0; h < 2; ++h) {
          const int byte = Fmt::has_min ? view.scale[h] | view.min[h] << 4 : view.scale[h];
          block[16 * h + r] = static_cast<uint8_t>(byte);
        }
      } else if constexpr (Fmt::is_k) {
        block[r] = static_cast<uint8_t>(view.scale[0]);
        block[16 + r] = view.min[0];
      }
      pack_words<Fmt>(view.q, r, block + (Fmt::is_k ? 32 : Fmt::floats_nbytes));
    }
  }
}

template <class Fmt>
void dequantize_packed_row_as(const uint8_t* group, int r, int64_t n_in, float* out) {
  BlockView view;
  for (int64_t b = 0; b < n_in / 32; ++b) {
    const uint8_t* block = group + Fmt::block_at(b);
    const uint8_t* head = Fmt::is_k ? group + Fmt::head_at(b) : block;
    view.d = read_u16(head + 2 * r);
    if constexpr (Fmt::has_min) view.m = read_u16(head + 32 + 2 * r);
    if constexpr (Fmt::is_k) {
      for (int h = 0; h < 2; ++h) {
        if constexpr (Fmt::sub16 && Fmt::has_min) {
          view.scale[h] = static_cast<int8_t>(block[16 * h + r] & 15);
          view.min[h] = block[16 * h + r] >> 4;
        } else if constexpr (Fmt::sub16) {
          view.scale[h] = static_cast<int8_t>(block[16 * h + r]);
        } else {
          view.scale[h] = static_cast<int8_t>(block[r]);
          view.min[h] = block[16 + r];
        }
      }
    }
    unpack_words<Fmt>(block + (Fmt::is_k ? 32 : Fmt::floats_nbytes), r, view.q);
    dequantize_block<Fmt>(view, out + 32 * b);
  }
}

// Floats: [n_in][16].
template <class T>
void pack_floats(const uint8_t* rows, int n_rows, int64_t n_in, uint8_t* group) {
  if (n_rows < 16) memset(group, 0, static_cast<size_t>(n_in) * 16 * sizeof(T));
  constexpr int64_t Chunk = 64;  // inputs per pass: 16 rows of 64 inputs stay in L1
  for (int64_t i0 = 0; i0 < n_in; i0 += Chunk) {
    const int64_t i1 = i0 + Chunk < n_in ? i0 + Chunk : n_in;
    for (int r = 0; r < n_rows; ++r) {
      const uint8_t* row = rows + static_cast<int64_t>(r) * n_in * static_cast<int64_t>(sizeof(T));
      for (int64_t i = i0; i < i1; ++i)
        memcpy(group + (i * 16 + r) * static_cast<int64_t>(sizeof(T)), row + i * static_cast<int64_t>(sizeof(T)),
               sizeof(T));
    }
  }
}

}  // namespace

int64_t row_nbytes(Encoding encoding, int64_t n_in) {
  const EncodingInfo& info = encoding_info(encoding);
  return n_in / info.block_size * info.block_nbytes;
}

int64_t group_nbytes(Encoding encoding, int64_t n_in) {
  if (!is_integer(encoding)) return 16 * row_nbytes(encoding, n_in);
  int64_t nbytes = 0;
  with_format(encoding, [&](auto format) { nbytes = decltype(format)::group_nbytes(n_in); });
  return nbytes;
}

int64_t packed_nbytes(Encoding encoding, int64_t n_out, int64_t n_in) {
  return (n_out + 15) / 16 * group_nbytes(encoding, n_in);
}

void pack_group(Encoding encoding, const uint8_t* rows, int n_rows, int64_t n_in, uint8_t* group) {
  switch (encoding) {
    case Encoding::F32: pack_floats<uint32_t>(rows, n_rows, n_in, group); return;
    case Encoding::F16:
    case Encoding::BF16: pack_floats<uint16_t>(rows, n_rows, n_in, group); return;
    default:
      with_format(encoding, [&](auto format) {
        pack_group_as<decltype(format)>(rows, row_nbytes(encoding, n_in), n_rows, n_in, group);
      });
  }
}

void dequantize_packed_row(Encoding encoding, const uint8_t* group, int r, int64_t n_in, float* out) {
  switch (encoding) {
    case Encoding::F32:
      for (int64_t i = 0; i < n_in; ++i) memcpy(out + i, group + (i * 16 + r) * 4, 4);
      return;
    case Encoding::F16:
      for (int64_t i = 0; i < n_in; ++i) out[i] = f16_to_f32(read_u16(group + (i * 16 + r) * 2));
      return;
    case Encoding::BF16:
      for (int64_t i = 0; i < n_in; ++i) out[i] = bf16_to_f32(read_u16(group + (i * 16 + r) * 2));
      return;
    default:
      with_format(encoding, [&](auto format) {
        dequantize_packed_row_as<decltype(format)>(group, r, n_in, out);
      });
  }
}

}  // namespace capax
