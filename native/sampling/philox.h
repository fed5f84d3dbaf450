// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): random numbers as a function of a counter.
#pragma once

#include <stdint.h>

namespace capax {

struct PhiloxBlock {
  uint32_t word[4];
};

// Ten rounds over a 128-bit counter with a 64-bit key.
static inline PhiloxBlock philox(PhiloxBlock counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
                static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// A uniform number in [0, 1) with 53 bits for one decision: the token at `position` of choice
// `choice` of a request. `stream` separates several decisions about the same token (0: the draw).
static inline double philox_uniform(uint64_t seed, uint32_t choice, uint64_t position, uint32_t stream) {
  const PhiloxBlock counter = {{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, stream}};
  const PhiloxBlock block = philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (static_cast<uint64_t>(block.word[0]) << 32 | block.word[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace capax
