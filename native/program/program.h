// A model's forward pass as a list of operations, run by the thread team in one call.
//
// A family file in Python records the operations once; `Program::run` then executes a range of
// them over the tokens of a step: prefill, decode and ragged mixtures are the same code. Rows
// are float32 [n_tokens, width] in buffers owned by the program. Every operation is a function
// of its own row (or, for attention, of its own sequence), so neither the composition of the
// step nor the number of threads can change a bit of a row.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "kernels.h"
#include "matmul/weight.h"
#include "parallel/team.h"
#include "program/shared_prefix.h"
#include "sampling/sampler.h"

namespace capax {

// One sequence's share of a step: consecutive positions of one paged cache.
struct SequenceSlice {
  int64_t token_begin, token_end;  // rows of the step
  int64_t position0;               // position of the first row; also the tokens already cached
  const int32_t* page_table;       // pages covering positions 0 .. position0 + n_tokens - 1; see KVView
  const int32_t* code_table = nullptr;  // coded: block -> code page, for all blocks full after the step
};

// Where a step's caches keep their older blocks as codes; see kv/codec.h.
struct CodedStep {
  const Codec* codec = nullptr;  // null: nothing is coded
  uint8_t* pages = nullptr;      // base of the pool of code pages
  int64_t page_stride = 0;
  int64_t lag = 0;               // -1 or more
  int64_t n_passing = 0;         // exact pages that this step fills and encodes for good

  // Blocks that a query at `position` reads from codes.
  int64_t n_blocks(int64_t position) const {
    return std::max<int64_t>(position / codec->block_tokens() - lag, 0);
  }
  // Blocks in order are encoded when the step reaches a position: at the end of the block if it is
  // read from then on, else spread over the block behind it, so that no step has all the work.
  int64_t encoded_at(int64_t block, int64_t share, int64_t n_shares) const {
    const int64_t end = (block + 1) * codec->block_tokens();
    return lag <= 0 ? end - 1 : end + share * codec->block_tokens() / n_shares;
  }
};

struct Step {
  const int32_t* tokens = nullptr;  // [n_tokens]
  int64_t n_tokens = 0;
  std::vector<SequenceSlice> sequences;
  std::vector<SharedPrefix> shared;  // groups of sequences that begin with the same pages
  const int32_t* logit_rows = nullptr;  // [n_logit_rows] rows whose logits are wanted
  int64_t n_logit_rows = 0;
  const Sampler* const* samplers = nullptr;  // [n_logit_rows], or nullptr: only logits are wanted
  SampleResult* results = nullptr;           // [n_logit_rows], `top` has room for what is wanted
  uint8_t* pages = nullptr;  // base of the page pool
  int64_t page_stride = 0;
  KVType kv_type = KVType::f32;
  CodedStep codes;
};

struct alignas(64) Counter {
  std::atomic<int64_t> next{0};
};

// Work of which every rank owns a share: it takes its own, whose rows lie in its cache, piece by
// piece, and then pieces of what slower ranks have left.
class Shares {
 public:
  // Before each use, by one thread.
  void reset(int n_ranks) {
    if (n_ranks > n_ranks_) counters_ = std::make_unique<Counter[]>(static_cast<size_t>(n_ranks));
    n_ranks_ = n_ranks;
    for (int rank = 0; rank < n_ranks; ++rank) counters_[static_cast<size_t>(rank)].next.store(0, std::memory_order_relaxed);
  }
  // body(owner, begin, end) for pieces of the items 0 .. n_items(owner) - 1 of each owner.
  template <class Count, class Body>
  void take(int rank, int64_t piece, const Count& n_items, const Body& body) {
    for (int i = 0; i < n_ranks_; ++i) {
      const int owner = (rank + i) % n_ranks_;
      std::atomic<int64_t>& next = counters_[static_cast<size_t>(owner)].next;
      const int64_t n = n_items(owner);
      while (next.load(std::memory_order_relaxed) < n) {
        const int64_t begin = next.fetch_add(piece, std::memory_order_relaxed);
        if (begin < n) body(owner, begin, std::min(begin + piece, n));
      }
    }
  }

 private:
  int n_ranks_ = 0;
  std::unique_ptr<Counter[]> counters_;
};

// Memory with the alignment of a cache line; grows, never shrinks, contents lost on growth.
class Scratch {
 public:
  uint8_t* reserve(int64_t nbytes);
  int64_t nbytes() const { return nbytes_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t nbytes_ = 0;
};

// What an operation sees while it runs.
struct Context {
  const Kernels& kernels;
  Team& team;
  const Step& step;

  void fail(const std::string& message);  // keeps the first message; the step is then void
  std::atomic<bool> failed{false};
  std::mutex message_mutex;
  std::string message;
};

class Operation {
 public:
  virtual ~Operation() = default;
  // Reserve shared scratch for this step; called by one thread before the team starts.
  virtual void prepare(const Step&, int /*n_threads*/) {}
  // Called by every rank, in program order, with a barrier after each operation.
  virtual void run(Context&, int rank) = 0;

  Counter counter;   // work items already claimed in this step
};

class Program {
 public:
  explicit Program(int n_threads) : team_(n_threads), pace_(team_.n_threads()) {}

  // A buffer of float32 rows of this width; returns its id. A `gathered` buffer has one row for
  // each of the step's `logit_rows` instead of one for each token.
  int buffer(int64_t width, bool gathered);
  int add(std::unique_ptr<Operation> operation);

  // Run operations [begin, end) over the step. Throws WeightReadError if a weight could not
  // be read, TeamStartError if threads could not be started.
  void run(const Step& step, int64_t begin, int64_t end);
  // Make room for so many tokens and logit rows in a step. Called once, after all buffers and
  // operations: views of rows stay valid, and nothing changes while another thread runs.
  void reserve(int64_t n_tokens, int64_t n_logit_rows);

  float* rows(int buffer) { return reinterpret_cast<float*>(buffers_[static_cast<size_t>(buffer)].memory.reserve(0)); }
  int64_t width(int buffer) const { return buffers_[static_cast<size_t>(buffer)].width; }
  int64_t n_buffers() const { return static_cast<int64_t>(buffers_.size()); }
  bool gathered(int buffer) const { return buffers_[static_cast<size_t>(buffer)].gathered; }
  int64_t max_tokens() const { return max_tokens_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  int64_t n_operations() const { return static_cast<int64_t>(operations_.size()); }
  int64_t scratch_nbytes() const;
  // What operations need while they run. One memory serves all of them, one after another: it
  // stays in cache, and a model of many layers takes no more than its widest operation.
  Scratch& operation_scratch() { return operation_scratch_; }
  int n_threads() const { return team_.n_threads(); }
  // Threads that the last step used: fewer while others keep the cores busy, see Pace.
  int n_active() const { return n_active_.load(std::memory_order_relaxed); }
  // Use so many threads from now on whatever the waits; 0: as the waits say. At most n_threads.
  void fix_threads(int n_threads);
  // An operation reads files while it runs: a long wait is then for the disk and says nothing of cores.
  void expect_reads() { n_fixed_ = team_.n_threads(); }

 private:
  struct Buffer {
    int64_t width;
    bool gathered;
    Scratch memory;
  };
  Team team_;
  Pace pace_;
  int n_fixed_ = 0;  // 0: the pace decides
  std::atomic<int> n_active_{team_.n_threads()};
  std::mutex running_;
  std::vector<Buffer> buffers_;
  Scratch operation_scratch_;
  std::vector<std::unique_ptr<Operation>> operations_;
  int64_t max_tokens_ = 0;
  int64_t max_logit_rows_ = 0;
};

}  // namespace capax
