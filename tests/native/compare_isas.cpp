// Runs every matrix product on every instruction set of this build and compares the bits with
// the scalar version. Built by test_neon.py for another architecture, run under emulation.
#include <stdio.h>
#include <string.h>

#include <random>
#include <vector>

#include "kernels.h"
#include "matmul/weight.h"

using capax::Encoding;

int main() {
  const Encoding encodings[] = {Encoding::F32,  Encoding::F16,  Encoding::BF16, Encoding::Q8_0, Encoding::Q4_0,
                                Encoding::Q4_1, Encoding::Q5_0, Encoding::Q5_1, Encoding::Q2_K, Encoding::Q3_K,
                                Encoding::Q4_K, Encoding::Q5_K, Encoding::Q6_K};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  int n_wrong = 0, n_compared = 0;
  for (const Encoding encoding : encodings) {
    const capax::EncodingInfo& info = capax::encoding_info(encoding);
    const int64_t n_out = 37, n_in = 512, n_tokens = 21;
    std::vector<uint8_t> data(static_cast<size_t>(n_out * n_in / info.block_size * info.block_nbytes));
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random() & 0x3f);  // scales stay small and finite
    const auto weight = capax::Weight::from_bytes(data.data(), static_cast<int64_t>(data.size()), encoding, n_out, n_in);
    std::vector<float> x(n_tokens * n_in), expected;
    for (float& value : x) value = normal(random);
    x[3 * n_in + 70] = __builtin_nanf("");
    std::vector<uint8_t> buffer(static_cast<size_t>(capax::q8_rows_nbytes(n_tokens, n_in)) + 64);
    uint8_t* aligned = buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64);
    capax::select_kernels("scalar");
    for (int round = 0; round < 2; ++round) {
      const auto tables = capax::supported_kernels();
      for (auto table = tables.rbegin(); table != tables.rend(); ++table) {  // scalar is the last
        if (!capax::select_kernels((*table)->isa)) return 2;
        const capax::Q8Rows rows = capax::q8_rows_at(aligned, n_tokens, n_in);
        (*table)->matmul.quantize_rows(x.data(), n_in, n_tokens, n_in, 0, n_tokens, rows);
        std::vector<float> y(n_tokens * n_out, 1.0f);
        weight->matmul_groups(0, weight->n_groups(), rows, x.data(), n_in, n_tokens, y.data(), n_out, round == 1, nullptr);
        if (strcmp((*table)->isa, "scalar") == 0) {
          expected = y;
          continue;
        }
        for (size_t i = 0; i < y.size(); ++i) {
          const bool both_nan = y[i] != y[i] && expected[i] != expected[i];
          if (!both_nan && memcmp(&y[i], &expected[i], 4) != 0) ++n_wrong;
        }
        ++n_compared;
        printf("%s %s\n", (*table)->isa, info.name);
      }
    }
  }
  printf("%d products compared, %d outputs differ\n", n_compared, n_wrong);
  return n_wrong == 0 && n_compared > 0 ? 0 : 1;
}
