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

int n_rounds_of(int n_ranks) {
  int n = 0;
  while ((1 << n) < n_ranks) ++n;
  return n;
}

}  // namespace

Team::Team(int n_threads)
    : n_threads_(n_threads < 1 ? 1 : n_threads), n_active_(n_threads_), desks_(static_cast<size_t>(n_threads_)),
      n_rounds_(n_rounds_of(n_threads_)),
      flags_(static_cast<size_t>(n_rounds_) * static_cast<size_t>(n_threads_)) {}

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
  for (Desk& desk : desks_) {
    desk.n_bodies.fetch_add(1);
    desk.n_bodies.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  stopping_.store(false);
  owner_pid_ = 0;
}

void Team::start() {
  for (std::thread& thread : threads_) thread.detach();  // only ever non-empty after a fork
  threads_.clear();
  for (Flag& flag : flags_) flag.n_arrivals.store(0);
  for (Desk& desk : desks_) desk.n_bodies.store(0);
  unfinished_.store(0);
  owner_pid_ = getpid();
  try {
    for (int rank = 1; rank < n_threads_; ++rank) threads_.emplace_back([this, rank] { work(rank); });
  } catch (const std::system_error& error) {
    stop();
    throw TeamStartError("cannot start " + std::to_string(n_threads_ - 1) + " threads (" + error.what() +
                         "): use fewer threads");
  }
}

void Team::run(int n_active, const std::function<void(int)>& body) {
  std::lock_guard<std::mutex> lock(running_);
  if (n_threads_ > 1 && owner_pid_ != getpid()) start();
  if (n_active != n_active_) {  // ranks that sat out have not counted along
    for (Flag& flag : flags_) flag.n_arrivals.store(0, std::memory_order_relaxed);
    n_active_ = n_active;
    n_rounds_ = n_rounds_of(n_active);
  }
  for (Desk& desk : desks_) desk.waited_ns = 0;
  if (n_active > 1) {
    body_ = &body;
    unfinished_.store(n_active - 1, std::memory_order_relaxed);
    for (int rank = 1; rank < n_active; ++rank) {
      Desk& desk = desks_[static_cast<size_t>(rank)];
      desk.n_bodies.fetch_add(1, std::memory_order_release);
      desk.n_bodies.notify_all();
    }
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

void Team::work(int rank) {
  DefaultFloatEnvironment environment;
  const std::atomic<uint32_t>& n_bodies = desks_[static_cast<size_t>(rank)].n_bodies;
  for (uint32_t n_done = 0;; ++n_done) {
    for (int spins = 0; n_bodies.load(std::memory_order_acquire) == n_done; ++spins) {
      if (spins < kSpinsBeforeYield) pause();
      else if (spins < kSpinsBeforeYield + kYieldsBeforeSleep) sched_yield();
      else n_bodies.wait(n_done, std::memory_order_acquire);
    }
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
    const Flag& below = flags[(rank + n_active_ - (1 << round)) % n_active_];
    // The other may be a barrier ahead already: counts are compared as they wrap.
    const auto is_missing = [&] {
      return static_cast<int32_t>(below.n_arrivals.load(std::memory_order_acquire) - mine) < 0;
    };
    for (int spins = 0; spins < kSpinsBeforeYield && is_missing(); ++spins) pause();
    if (!is_missing()) continue;
    const int64_t begin = monotonic_ns();
    while (is_missing()) sched_yield();
    const int64_t waited = monotonic_ns() - begin;
    if (waited >= Pace::kLongWaitNs) desks_[static_cast<size_t>(rank)].waited_ns += waited;
  }
}

int64_t Team::waited_ns() const {
  int64_t total = 0;
  for (const Desk& desk : desks_) total += desk.waited_ns;
  return total;
}

}  // namespace capax
