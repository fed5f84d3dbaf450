// Chooses the kernel table once. The only place that asks the CPU what it can do.
#include <atomic>
#include <cstring>

#include "kernels.h"

namespace capax {

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
    tables.push_back(&kernels_avx512);
  if (avx2) tables.push_back(&kernels_avx2);
#elif defined(__aarch64__)
  tables.push_back(&kernels_neon);
#endif
  tables.push_back(&kernels_scalar);
  return tables;
}

namespace {
std::atomic<const Kernels*> chosen{nullptr};
}

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    table = supported_kernels().front();
    chosen.store(table, std::memory_order_release);
  }
  return *table;
}

bool select_kernels(const std::string& isa) {
  for (const Kernels* table : supported_kernels()) {
    if (isa == table->isa) {
      chosen.store(table, std::memory_order_release);
      return true;
    }
  }
  return false;
}

}  // namespace capax
