#include "parallel/team.h"

#include <sched.h>
#include <unistd.h>

#include "parallel/float_environment.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace capax {
namespace {

// A wait is usually over within a microsecond. After a few more the peer has most likely lost its
// core: with both threads on one core, every spin is time the peer does not get.
constexpr int kSpinsBeforeYield = 150;
constexpr int kYieldsBeforeSleep = 400;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team::Team(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads) {
  while ((1 << n_rounds_) < n_threads_) ++n_rounds_;
  flags_ = std::vector<Flag>(static_cast<size_t>(n_rounds_) * static_cast<size_t>(n_threads_));
}

Team::~Team() {
  if (threads_.empty()) return;
  if (owner_pid_ != getpid()) {  // a fork's child: the threads do not exist here
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  stop();
}

void Team::stop() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  stopping_.store(false);
  owner_pid_ = 0;
}

void Team::start() {
  for (std::thread& thread : threads_) thread.detach();  // only ever non-empty after a fork
  threads_.clear();
  for (Flag& flag : flags_) flag.n_arrivals.store(0);
  unfinished_.store(0);
  owner_pid_ = getpid();
  const uint32_t seen = epoch_.load();
  try {
    for (int rank = 1; rank < n_threads_; ++rank) threads_.emplace_back([this, rank, seen] { work(rank, seen); });
  } catch (const std::system_error& error) {
    stop();
    throw TeamStartError("cannot start " + std::to_string(n_threads_ - 1) + " threads (" + error.what() +
                         "): use fewer threads");
  }
}

void Team::run(const std::function<void(int)>& body) {
  std::lock_guard<std::mutex> lock(running_);
  if (n_threads_ > 1) {
    if (owner_pid_ != getpid()) start();
    body_ = &body;
    unfinished_.store(n_threads_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }
  {
    DefaultFloatEnvironment environment;
    body(0);
  }
  for (int spins = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpinsBeforeYield) pause();
    else sched_yield();
  }
}

void Team::work(int rank, uint32_t seen) {
  DefaultFloatEnvironment environment;
  while (true) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpinsBeforeYield) pause();
      else if (spins < kSpinsBeforeYield + kYieldsBeforeSleep) sched_yield();
      else epoch_.wait(seen, std::memory_order_acquire);
    }
    ++seen;
    if (stopping_.load()) return;
    (*body_)(rank);
    unfinished_.fetch_sub(1, std::memory_order_release);
  }
}

void Team::barrier(int rank) {
  for (int round = 0; round < n_rounds_; ++round) {
    Flag* flags = flags_.data() + static_cast<ptrdiff_t>(round) * n_threads_;
    const uint32_t mine = flags[rank].n_arrivals.load(std::memory_order_relaxed) + 1;
    flags[rank].n_arrivals.store(mine, std::memory_order_release);
    const Flag& below = flags[(rank + n_threads_ - (1 << round)) % n_threads_];
    // The other may be a barrier ahead already: counts are compared as they wrap.
    for (int spins = 0; static_cast<int32_t>(below.n_arrivals.load(std::memory_order_acquire) - mine) < 0; ++spins) {
      if (spins < kSpinsBeforeYield) pause();
      else sched_yield();
    }
  }
}

}  // namespace capax
