// Threads of a team as the cores that are left to them ask for.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace capax {

inline int64_t monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// How many of a team's threads to use, from how long they have lately stood waiting.
//
// Threads that meet hundreds of times in a token all wait when one of them has lost its core, for
// milliseconds each time: beside other busy processes fewer threads are faster, down to a single one
// that waits for nobody. Half of the threads are laid off when such waits take up most of the time,
// and called back to see whether the cores are free again, more and more rarely while they are not.
class Pace {
 public:
  // A wait that is this long is no imbalance of the work: the other has lost its core.
  static constexpr int64_t kLongWaitNs = 400'000;

  explicit Pace(int n_threads) : n_threads_(std::max(1, n_threads)), n_active_(n_threads_) {}

  // Threads for a step that begins at `now_ns`.
  int next(int64_t now_ns) {
    if (n_active_ < n_threads_ && now_ns >= retry_ns_) {
      n_active_ = std::min(2 * n_active_, n_threads_);
      is_trial_ = true;
      forget();
    }
    return n_active_;
  }

  // A step of `next` threads has ended. waited_ns: its long waits, summed over the threads.
  void record(int64_t now_ns, int64_t step_ns, int64_t waited_ns) {
    if (n_active_ == 1) return;
    step_ns_ += step_ns;
    waited_ns_ += waited_ns / (n_active_ - 1);  // while one is away all others wait
    if (step_ns_ < kWindowNs) return;
    const bool is_crowded = waited_ns_ > step_ns_ / 2;
    if (is_crowded) {
      backoff_ns_ = is_trial_ ? std::min(2 * backoff_ns_, kLongestBackoffNs) : kFirstBackoffNs;
      n_active_ = std::max(1, n_active_ / 2);
      retry_ns_ = now_ns + backoff_ns_;
    } else if (is_trial_) {
      retry_ns_ = now_ns;  // cores have become free: perhaps more of them
    }
    is_trial_ = false;
    forget();
  }

 private:
  static constexpr int64_t kWindowNs = 20'000'000;  // several slices of a scheduler
  static constexpr int64_t kFirstBackoffNs = 100'000'000;
  static constexpr int64_t kLongestBackoffNs = 3'200'000'000;

  void forget() { step_ns_ = waited_ns_ = 0; }

  const int n_threads_;
  int n_active_;
  bool is_trial_ = false;  // the threads in use are more than those that last worked well
  int64_t retry_ns_ = 0;
  int64_t backoff_ns_ = kFirstBackoffNs;
  int64_t step_ns_ = 0, waited_ns_ = 0;
};

}  // namespace capax
