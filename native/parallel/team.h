// A persistent team of threads that runs one body at a time, with barriers inside.
//
// One dispatch per engine step, not one per operation: the body walks the whole program and
// meets at `barrier()`. The caller is rank 0. Waiting spins briefly, then yields, then sleeps
// in the kernel, so an idle team costs nothing and a descheduled peer is not starved.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "parallel/pace.h"

namespace capax {

// The system gave us no threads; nothing has run.
struct TeamStartError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Team {
 public:
  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int n_threads() const { return n_threads_; }
  // Ranks of the body that runs, or ran last.
  int size() const { return n_active_; }

  // Run body(rank) on ranks 0 .. n_active - 1 and return when all have finished; the others sleep
  // on. 1 <= n_active <= n_threads. The body must not throw.
  // Throws TeamStartError if the threads are not there yet and cannot be started.
  // Calls from several Python threads queue up. After a fork the child starts its own threads.
  // The floating-point environment is the default one inside, whatever the caller's was.
  void run(int n_active, const std::function<void(int)>& body);
  void run(const std::function<void(int)>& body) { run(n_threads_, body); }

  // Inside a body: wait until every rank has arrived.
  void barrier(int rank);

  // Nanoseconds that the ranks of the last body stood at barriers for `Pace::kLongWaitNs` or more at
  // a time, summed over the ranks.
  int64_t waited_ns() const;

 private:
  void start();
  void stop();
  void work(int rank);

  const int n_threads_;
  std::vector<std::thread> threads_;
  std::mutex running_;  // one body at a time
  int64_t owner_pid_ = 0;
  const std::function<void(int)>* body_ = nullptr;
  int n_active_;
  // A worker's own, so that one who is not wanted sleeps through a body.
  struct alignas(64) Desk {
    std::atomic<uint32_t> n_bodies{0};  // advances once per body that wants this rank
    int64_t waited_ns = 0;              // written by this rank only
  };
  std::vector<Desk> desks_;                     // [n_threads]
  alignas(64) std::atomic<int> unfinished_{0};  // workers still inside the body
  // A dissemination barrier: in round r a rank tells the one 2^r above that it is here and waits
  // for the one 2^r below. No cache line has two writers, and two threads need one exchange.
  struct alignas(64) Flag {
    std::atomic<uint32_t> n_arrivals{0};  // written by one rank only
  };
  int n_rounds_ = 0;         // for the active ranks
  std::vector<Flag> flags_;  // [most rounds, n_threads]
  std::atomic<bool> stopping_{false};
};

}  // namespace capax
