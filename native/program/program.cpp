#include "program/program.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

namespace capax {

namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 30;  // of rows and widths: 4 bytes each stay below 2^63
constexpr int64_t kMaxNbytes = int64_t{1} << 46;  // more than any machine has

}  // namespace

void Scratch::Free::operator()(uint8_t* p) const { std::free(p); }

uint8_t* Scratch::reserve(int64_t nbytes) {
  if (nbytes > nbytes_) {
    if (nbytes > kMaxNbytes) throw std::bad_alloc();
    const int64_t rounded = (nbytes + 63) / 64 * 64;
    memory_.reset();
    nbytes_ = 0;
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(rounded))));
    if (!memory_) throw std::bad_alloc();
    nbytes_ = rounded;
  }
  return memory_.get();
}

void Context::fail(const std::string& what) {
  std::lock_guard<std::mutex> lock(message_mutex);
  if (!failed.exchange(true)) message = what;
}

int Program::buffer(int64_t width, bool gathered) {
  if (width <= 0 || width > kMaxExtent) throw std::invalid_argument("a buffer is 1 to 2^30 floats wide");
  if (max_tokens_ > 0) throw std::invalid_argument("buffers come before reserve");
  buffers_.push_back({width, gathered, {}});
  return static_cast<int>(buffers_.size()) - 1;
}

int Program::add(std::unique_ptr<Operation> operation) {
  if (max_tokens_ > 0) throw std::invalid_argument("operations come before reserve");
  operations_.push_back(std::move(operation));
  return static_cast<int>(operations_.size()) - 1;
}

void Program::reserve(int64_t n_tokens, int64_t n_logit_rows) {
  if (max_tokens_ > 0) throw std::invalid_argument("rows are reserved once");
  if (n_tokens < 1 || n_logit_rows < 1 || std::max(n_tokens, n_logit_rows) > kMaxExtent)
    throw std::invalid_argument("a step has 1 to 2^30 rows");
  for (Buffer& buffer : buffers_)
    buffer.memory.reserve((buffer.gathered ? n_logit_rows : n_tokens) * buffer.width *
                          static_cast<int64_t>(sizeof(float)));
  max_tokens_ = n_tokens;
  max_logit_rows_ = n_logit_rows;
}

void Program::fix_threads(int n_threads) {
  if (n_threads < 0 || n_threads > team_.n_threads())
    throw std::invalid_argument("a program of " + std::to_string(team_.n_threads()) + " threads cannot use " +
                                std::to_string(n_threads));
  std::lock_guard<std::mutex> lock(running_);
  n_fixed_ = n_threads;
}

void Program::run(const Step& step, int64_t begin, int64_t end) {
  std::lock_guard<std::mutex> lock(running_);
  if (max_tokens_ == 0) throw std::invalid_argument("no rows are reserved");
  if (step.n_tokens > max_tokens_ || step.n_logit_rows > max_logit_rows_)
    throw std::invalid_argument("the step has more rows than the program has room for");
  const int64_t started = monotonic_ns();
  const int n_active = n_fixed_ ? n_fixed_ : pace_.next(started);
  n_active_.store(n_active, std::memory_order_relaxed);
  for (int64_t i = begin; i < end; ++i) {
    Operation& operation = *operations_[static_cast<size_t>(i)];
    operation.prepare(step, n_active);
    operation.counter.next.store(0, std::memory_order_relaxed);
  }
  Context context{kernels(), team_, step, {}, {}, {}};
  team_.run(n_active, [&](int rank) {
    for (int64_t i = begin; i < end; ++i) {
      operations_[static_cast<size_t>(i)]->run(context, rank);
      team_.barrier(rank);
    }
  });
  const int64_t ended = monotonic_ns();
  if (!n_fixed_) pace_.record(ended, ended - started, team_.waited_ns());
  if (context.failed.load()) throw WeightReadError(context.message);
}

int64_t Program::scratch_nbytes() const {
  int64_t total = operation_scratch_.nbytes();
  for (const Buffer& buffer : buffers_) total += buffer.memory.nbytes();
  return total;
}

}  // namespace capax
