// The encodings of a weight and their block sizes in a file.
#pragma once

#include <stdint.h>

#include <string>

namespace capax {

enum class Encoding : int32_t {  // values are the GGML type ids
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
  Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30,
};

struct EncodingInfo {
  Encoding encoding;
  const char* name;      // as in GGUF: "Q4_1"
  int64_t block_size;    // weights per block along a row
  int64_t block_nbytes;  // bytes of a block in the file
};

// Throws std::invalid_argument for an unknown encoding.
const EncodingInfo& encoding_info(Encoding encoding);
const EncodingInfo& encoding_info(const std::string& name);

constexpr bool is_integer(Encoding encoding) {
  return encoding != Encoding::F32 && encoding != Encoding::F16 && encoding != Encoding::BF16;
}

}  // namespace capax
