#include <stdexcept>

#include "quants/dequantize_block.h"
#include "quants/quants.h"

namespace capax {

namespace {
constexpr EncodingInfo kEncodings[] = {
    {Encoding::F32, "F32", 1, 4},       {Encoding::F16, "F16", 1, 2},       {Encoding::BF16, "BF16", 1, 2},
    {Encoding::Q8_0, "Q8_0", 32, 34},   {Encoding::Q4_0, "Q4_0", 32, 18},   {Encoding::Q4_1, "Q4_1", 32, 20},
    {Encoding::Q5_0, "Q5_0", 32, 22},   {Encoding::Q5_1, "Q5_1", 32, 24},   {Encoding::Q2_K, "Q2_K", 256, 84},
    {Encoding::Q3_K, "Q3_K", 256, 110}, {Encoding::Q4_K, "Q4_K", 256, 144}, {Encoding::Q5_K, "Q5_K", 256, 176},
    {Encoding::Q6_K, "Q6_K", 256, 210},
};
}  // namespace

const EncodingInfo& encoding_info(Encoding encoding) {
  for (const EncodingInfo& info : kEncodings)
    if (info.encoding == encoding) return info;
  throw std::invalid_argument("encoding id " + std::to_string(static_cast<int32_t>(encoding)) + " is not known");
}

const EncodingInfo& encoding_info(const std::string& name) {
  std::string known;
  for (const EncodingInfo& info : kEncodings) {
    if (name == info.name) return info;
    known += std::string(known.empty() ? "" : ", ") + info.name;
  }
  throw std::invalid_argument("encoding '" + name + "' is not one of " + known);
}

void dequantize(Encoding encoding, const uint8_t* bytes, int64_t n, float* out) {
  switch (encoding) {
    case Encoding::F32:
      memcpy(out, bytes, static_cast<size_t>(n) * 4);
      return;
    case Encoding::F16:
      for (int64_t i = 0; i < n; ++i) out[i] = f16_to_f32(read_u16(bytes + 2 * i));
      return;
    case Encoding::BF16:
      for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(read_u16(bytes + 2 * i));
      return;
    default:
      with_format(encoding, [&](auto format) {
        using Fmt = decltype(format);
        BlockView view;
        for (int64_t b = 0; b < n / 32; ++b) {
          read_block<Fmt>(bytes, b, view);
          dequantize_block<Fmt>(view, out + 32 * b);
        }
      });
  }
}

}  // namespace capax
