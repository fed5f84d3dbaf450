#include "probe/probe.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "kernels.h"

namespace capax {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::atomic<int32_t> sink;  // results end here, so that no work can be removed

// Runs work(thread) on all threads at once, pass after pass, for about `seconds` and at least
// three passes; a pass lasts until its slowest thread is done. Returns seconds per pass.
template <class Work>
std::vector<double> timed_passes(int n_threads, double seconds, Work work) {
  std::vector<double> passes;
  std::atomic<bool> stop{false};
  std::barrier gate(n_threads);
  const auto run = [&](int thread) {
    const Clock::time_point begin = Clock::now();
    for (int pass = 0; !stop.load(); ++pass) {
      gate.arrive_and_wait();
      const Clock::time_point start = Clock::now();
      sink.fetch_xor(work(thread));
      gate.arrive_and_wait();
      if (thread == 0) {
        if (pass > 0) passes.push_back(seconds_since(start));  // the first pass warms up
        stop.store(pass >= 3 && seconds_since(begin) >= seconds);
      }
      gate.arrive_and_wait();
    }
  };
  std::vector<std::thread> threads;
  for (int thread = 1; thread < n_threads; ++thread) threads.emplace_back(run, thread);
  run(0);
  for (std::thread& thread : threads) thread.join();
  return passes;
}

// work / time of the best and of the median pass.
Measured rates(std::vector<double> passes, double work) {
  std::sort(passes.begin(), passes.end());
  return {work / passes.front(), work / passes[passes.size() / 2]};
}

// Rounds of a register loop that last about two milliseconds, so that a pass is short against
// interruptions and long against the barrier.
template <class Loop>
int64_t rounds_for_a_pass(Loop loop) {
  for (int64_t n = 1024;; n *= 2) {
    const Clock::time_point start = Clock::now();
    sink.fetch_xor(static_cast<int32_t>(loop(n)));
    if (seconds_since(start) > 1e-3) return 2 * n;
  }
}

template <class Loop>
Measured probe_loop(int n_threads, double seconds, Loop loop, int64_t work_per_round) {
  const int64_t n = rounds_for_a_pass(loop);
  const auto passes =
      timed_passes(n_threads, seconds, [&](int) { return static_cast<int32_t>(loop(n)); });
  return rates(passes, static_cast<double>(n) * static_cast<double>(work_per_round) * n_threads / 1e9);
}

}  // namespace

Measured probe_read_gbps(int64_t nbytes, int n_threads, double seconds) {
  constexpr int64_t huge = 2 << 20;
  const int64_t share = std::max<int64_t>(nbytes / n_threads / 1024, 1) * 1024;
  const int64_t size = (share * n_threads + huge - 1) / huge * huge + huge;
  void* mapping =
      mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t start = (reinterpret_cast<uintptr_t>(mapping) + huge - 1) / huge * huge;
  uint8_t* data = reinterpret_cast<uint8_t*>(start);
#ifdef MADV_HUGEPAGE
  madvise(data, static_cast<size_t>(size - huge), MADV_HUGEPAGE);  // as weights have it; advice only
#endif
  memset(data, 1, static_cast<size_t>(share * n_threads));
  const auto read_sum = kernels().probe.read_sum;
  // A buffer that fits a cache is read several times per pass, or the barrier would be measured.
  const int64_t repeats = std::max<int64_t>(1, (int64_t{16} << 20) / share);
  const auto passes = timed_passes(n_threads, seconds, [&](int thread) {
    int32_t total = 0;
    for (int64_t i = 0; i < repeats; ++i) total ^= read_sum(data + thread * share, share);
    return total;
  });
  munmap(mapping, static_cast<size_t>(size));
  return rates(passes, static_cast<double>(share * n_threads * repeats) / 1e9);
}

Measured probe_int8_gmacs(int n_threads, double seconds) {
  const ProbeKernels& probe = kernels().probe;
  return probe_loop(n_threads, seconds, probe.int8_dots, probe.int8_macs_per_round);
}

Measured probe_f32_gflops(int n_threads, double seconds) {
  const ProbeKernels& probe = kernels().probe;
  return probe_loop(n_threads, seconds, probe.f32_fmas, 2 * probe.f32_fmas_per_round);
}

}  // namespace capax
