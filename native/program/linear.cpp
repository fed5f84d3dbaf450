#include "program/linear.h"

#include <algorithm>
#include <exception>
#include <stdexcept>

namespace capax {
namespace {

// Up to this many rows every thread prepares all of them for itself: cheaper than a barrier.
constexpr int64_t kPrivateRows = 2;
// Groups whose doubled rows are multiplied before their two halves are added: 16 KiB of sums for a
// step of up to 8 rows, and one weight's reads stay long.
constexpr int64_t kDoubledGroups = 16;

// From so many rows for each thread on, rows are shared out instead of groups of output rows.
constexpr int64_t kOwnRows = 64;

// How an operation's groups of output rows are shared out. Each thread begins with a range of its
// own, which costs nothing; what is left is claimed piece by piece, so that a slowed core does not
// hold up the others. A claim moves a cache line between cores, up to half a microsecond when they
// do not share a cache: with few rows a thread's whole share takes but ten.
struct Sharing {
  int64_t own;    // groups that each thread begins with
  int64_t piece;  // groups of a claim
};

Sharing share_out(int64_t n_groups, int n_threads, bool is_short) {
  if (!is_short) return {0, std::max<int64_t>(1, n_groups / (n_threads * 24))};
  const int64_t own = n_groups * 3 / (4 * n_threads);
  return {own, std::max<int64_t>(1, (n_groups - own * n_threads) / (n_threads * 2))};
}

int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

}  // namespace

LinearOperation::LinearOperation(Program& program, int input, int64_t n_in, std::vector<float> norm,
                                 float norm_eps, int up, bool accumulate)
    : program_(program), input_(input), n_in_(n_in), norm_(std::move(norm)), norm_eps_(norm_eps), up_(up),
      accumulate_(accumulate), doubles_(program.gathered(input)) {
  if (!norm_.empty() && static_cast<int64_t>(norm_.size()) != n_in) throw std::invalid_argument("norm gain");
  if (!norm_.empty() && up_ >= 0) throw std::invalid_argument("a norm and a gate exclude each other");
}

void LinearOperation::add_output(Output output) {
  if (output.weight->n_in() != n_in_) throw std::invalid_argument("weight and input differ in width");
  if (!output.bias.empty() && static_cast<int64_t>(output.bias.size()) != output.weight->n_out())
    throw std::invalid_argument("bias and weight differ in length");
  bool is_used = output.buffer == input_ || output.buffer == up_;
  for (const Output& other : outputs_) is_used = is_used || other.buffer == output.buffer;
  if (is_used) throw std::invalid_argument("an output needs a buffer that nothing else in the operation uses");
  (output.weight->is_integer() ? needs_integer_ : needs_float_) = true;
  is_streamed_ = is_streamed_ || output.weight->residency() == Residency::Streamed;
  if (is_streamed_) program_.expect_reads();
  n_groups_ += output.weight->n_groups();
  weight_scratch_nbytes_ = std::max(weight_scratch_nbytes_, align64(output.weight->scratch_nbytes()));
  outputs_.push_back(std::move(output));
}

int64_t LinearOperation::prepared_nbytes(int64_t n) const {
  return (needs_integer_ ? q8_rows_nbytes(doubles_ ? 2 * n : n, n_in_) : 0) + (needs_float_ ? align64(n * n_in_ * 4) : 0);
}

LinearOperation::Prepared LinearOperation::layout(uint8_t* memory, int64_t n) const {
  Prepared prepared{};
  if (needs_integer_) {
    const int64_t n_q8 = doubles_ ? 2 * n : n;
    prepared.q8 = q8_rows_at(memory, n_q8, n_in_);
    memory += q8_rows_nbytes(n_q8, n_in_);
  }
  if (needs_float_) prepared.rows = reinterpret_cast<float*>(memory);
  return prepared;
}

void LinearOperation::prepare(const Step& step, int n_threads) {
  const int64_t n = n_rows(step);
  shared_nbytes_ = n > kPrivateRows ? prepared_nbytes(n) : 0;
  const bool doubles = doubles_ && needs_integer_;
  temporary_nbytes_ = align64(std::min(n, kTokenTile) * n_in_ * 4) * (doubles ? 3 : 1);
  one_nbytes_ = doubles ? q8_rows_nbytes(1, n_in_) : 0;
  sums_nbytes_ = doubles ? align64(2 * n * 16 * kDoubledGroups * 4) : 0;
  rank_nbytes_ = (n > kPrivateRows ? 0 : prepared_nbytes(n)) + temporary_nbytes_ + one_nbytes_ + sums_nbytes_ +
                 weight_scratch_nbytes_;
  program_.operation_scratch().reserve(shared_nbytes_ + rank_nbytes_ * n_threads);
  shares_.reset(n_threads);
}

void LinearOperation::prepare_rows(Context& context, const Prepared& prepared, int64_t begin, int64_t end,
                                   float* temporary) const {
  const bool plain = norm_.empty() && up_ < 0;
  const int64_t width = program_.width(input_);
  for (int64_t tile = begin; tile < end; tile += kTokenTile) {
    const int64_t last = std::min(end, tile + kTokenTile);
    const float* x = program_.rows(input_) + tile * width;
    int64_t ldx = width;
    if (!plain || prepared.rows) {
      float* target = prepared.rows ? prepared.rows + tile * n_in_ : temporary;
      for (int64_t row = tile; row < last; ++row) {
        const float* from = program_.rows(input_) + row * width;
        float* to = target + (row - tile) * n_in_;
        if (!norm_.empty())
          context.kernels.norms.rms_norm(from, 1, n_in_, norm_.data(), norm_eps_, to);
        else if (up_ >= 0)
          context.kernels.norms.swiglu(from, program_.rows(up_) + row * program_.width(up_), n_in_, to);
        else
          std::copy(from, from + n_in_, to);
      }
      x = target;
      ldx = n_in_;
    }
    if (needs_integer_ && doubles_) {
      float* doubled = temporary + (temporary_nbytes_ / 3 / 4);  // behind the tile of rows
      uint8_t* one = reinterpret_cast<uint8_t*>(temporary) + temporary_nbytes_;
      double_rows(context, x, ldx, last - tile, doubled, q8_rows_at(one, 1, n_in_));
      context.kernels.matmul.quantize_rows(doubled - 2 * tile * n_in_, n_in_, 2 * n_rows(context.step), n_in_, 2 * tile,
                                           2 * last, prepared.q8);
    } else if (needs_integer_) {
      context.kernels.matmul.quantize_rows(x - tile * ldx, ldx, n_rows(context.step), n_in_, tile, last, prepared.q8);
    }
  }
}

void LinearOperation::double_rows(Context& context, const float* rows, int64_t ldx, int64_t n, float* doubled,
                                  const Q8Rows& one) const {
  for (int64_t row = 0; row < n; ++row) {
    const float* x = rows + row * ldx;
    float* rest = std::copy(x, x + n_in_, doubled + 2 * row * n_in_);
    context.kernels.matmul.quantize_rows(x, n_in_, 1, n_in_, 0, 1, one);
    for (int64_t i = 0; i < n_in_; ++i) rest[i] = x[i] - one.d[i / 32] * static_cast<float>(one.q[i]);
  }
}

void LinearOperation::run_doubled(const Output& output, int64_t first, int64_t last, const Q8Rows& rows, int64_t n,
                                  float* y, float* sums, uint8_t* weight_scratch) const {
  constexpr int64_t width = 16 * kDoubledGroups;
  const int64_t ldy = program_.width(output.buffer);
  for (int64_t g = first; g < last; g += kDoubledGroups) {
    const int64_t end = std::min(last, g + kDoubledGroups);
    output.weight->matmul_groups(g, end, rows, nullptr, n_in_, 2 * n, sums - 16 * g, width, false, weight_scratch);
    const int64_t stop = std::min(16 * end, output.weight->n_out());
    for (int64_t t = 0; t < n; ++t) {
      float* to = y + t * ldy;
      const float *whole = sums + 2 * t * width - 16 * g, *rest = whole + width;
      for (int64_t o = 16 * g; o < stop; ++o) {
        const float sum = whole[o] + rest[o];
        to[o] = accumulate_ ? to[o] + sum : sum;
      }
    }
  }
}

void LinearOperation::multiply(Context& context, const Prepared& prepared, int64_t from, int64_t to, int64_t first,
                               int64_t last, uint8_t* scratch) const {
  float* sums = reinterpret_cast<float*>(scratch + temporary_nbytes_ + one_nbytes_);
  uint8_t* weight_scratch = scratch + temporary_nbytes_ + one_nbytes_ + sums_nbytes_;
  const Q8Rows q8 = needs_integer_ ? q8_rows_from(prepared.q8, doubles_ ? 2 * first : first, n_in_) : Q8Rows{};
  const float* rows = prepared.rows ? prepared.rows + first * n_in_ : nullptr;
  const int64_t n = last - first;
  for (const Output& output : outputs_) {  // the outputs' groups lie one after another
    const int64_t groups = output.weight->n_groups();
    if (from < groups && to > 0) {
      const int64_t begin = std::max<int64_t>(from, 0), end = std::min(to, groups);
      const int64_t ldy = program_.width(output.buffer);
      float* y = program_.rows(output.buffer) + first * ldy;
      try {
        if (doubles_ && output.weight->is_integer())
          run_doubled(output, begin, end, q8, n, y, sums, weight_scratch);
        else
          output.weight->matmul_groups(begin, end, q8, rows, n_in_, n, y, ldy, accumulate_, weight_scratch);
      } catch (const std::exception& error) {
        context.fail(error.what());
      }
      if (!output.bias.empty()) {
        const int64_t stop = std::min(end * 16, output.weight->n_out());
        for (int64_t t = 0; t < n; ++t)
          for (int64_t o = begin * 16; o < stop; ++o) y[t * ldy + o] += output.bias[static_cast<size_t>(o)];
      }
    }
    from -= groups;
    to -= groups;
  }
}

void LinearOperation::run(Context& context, int rank) {
  const int64_t n = n_rows(context.step);
  if (n == 0) return;
  const int n_threads = context.team.size();
  uint8_t* mine = program_.operation_scratch().reserve(0) + shared_nbytes_ + rank * rank_nbytes_;
  // Whole tiles of rows to each rank: the int8 form interleaves the rows of a tile.
  const int64_t n_tiles = (n + kTokenTile - 1) / kTokenTile;
  const auto first_row = [&](int owner) { return std::min(n, n_tiles * owner / n_threads * kTokenTile); };
  Prepared prepared{};
  if (n <= kPrivateRows) {
    prepared = layout(mine, n);
    mine += prepared_nbytes(n);
    prepare_rows(context, prepared, 0, n, reinterpret_cast<float*>(mine));
  } else {
    prepared = layout(program_.operation_scratch().reserve(0), n);
    prepare_rows(context, prepared, first_row(rank), first_row(rank + 1), reinterpret_cast<float*>(mine));
    context.team.barrier(rank);
  }
  const auto is_running = [&] { return !context.failed.load(std::memory_order_relaxed); };

  if (n_threads > 1 && n >= kOwnRows * n_threads && !is_streamed_) {
    const int64_t piece = std::max<int64_t>(1, n_groups_ / 24);
    shares_.take(rank, piece, [&](int) { return n_groups_; }, [&](int owner, int64_t begin, int64_t end) {
      if (is_running()) multiply(context, prepared, begin, end, first_row(owner), first_row(owner + 1), mine);
    });
    return;
  }
  const Sharing sharing = share_out(n_groups_, n_threads, n <= kTokenTile);
  int64_t begin = rank * sharing.own, end = begin + sharing.own;
  while (is_running()) {
    if (begin == end) {
      begin = n_threads * sharing.own + counter.next.fetch_add(sharing.piece, std::memory_order_relaxed);
      if (begin >= n_groups_) break;
      end = std::min(begin + sharing.piece, n_groups_);
    }
    multiply(context, prepared, begin, end, 0, n, mine);
    begin = end;
  }
}

}  // namespace capax
