// One encoded matrix [n_out, n_in]: how it is encoded and where it lives.
//
// `Packed`: all groups in memory, in the kernels' layout. `Streamed`: the rows stay in the
// file; each call reads and packs a few groups at a time into the caller's scratch and runs
// the same kernel, so both residencies give the same bits. Files are read with pread, never
// mapped: a file that shrinks under us is an error with its path and offset, not a SIGBUS.
#pragma once

#include <stdint.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "matmul/matmul.h"

namespace capax {

// Reading a weight's bytes failed; the message names path, offset and what was wrong.
struct WeightReadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A region of memory that weights are laid into one after another, on huge pages where the
// system has them (one TLB entry per 2 MiB instead of 512).
class WeightArena {
 public:
  // Throws std::bad_alloc.
  explicit WeightArena(int64_t nbytes);
  ~WeightArena();
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // 64-byte aligned bytes, or nullptr when the arena is full. Safe to call from many threads.
  uint8_t* take(int64_t nbytes);
  int64_t nbytes() const { return nbytes_; }
  int64_t used() const { return used_.load(); }

 private:
  void* mapping_ = nullptr;
  uint8_t* base_ = nullptr;
  int64_t mapping_nbytes_ = 0, nbytes_ = 0;
  std::atomic<int64_t> used_{0};
};

// A file that several weights are read from; one descriptor however many weights it holds.
class WeightFile {
 public:
  // Throws WeightReadError.
  static std::shared_ptr<WeightFile> open(const std::string& path);
  ~WeightFile();
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  // Bytes [offset, offset + nbytes) or WeightReadError.
  void read(int64_t offset, int64_t nbytes, uint8_t* out) const;
  int64_t nbytes() const;
  const std::string& path() const { return path_; }

 private:
  WeightFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;
};

enum class Residency { Packed, Streamed };

class Weight {
 public:
  // The rows are bytes [offset, offset + nbytes) of the file. Throws std::invalid_argument
  // when sizes disagree, WeightReadError when the file does. With `arena` the packed form is
  // taken from it. A packed weight is empty until `pack_range` has covered all groups.
  static std::shared_ptr<Weight> open(const std::string& path, int64_t offset, int64_t nbytes, Encoding encoding,
                                      int64_t n_out, int64_t n_in, Residency residency,
                                      std::shared_ptr<WeightArena> arena = nullptr);
  // Packs a copy of the bytes; always `Packed`.
  static std::shared_ptr<Weight> from_bytes(const uint8_t* bytes, int64_t nbytes, Encoding encoding, int64_t n_out,
                                            int64_t n_in, std::shared_ptr<WeightArena> arena = nullptr);
  // What `Packed` will take, for planning: from sizes alone.
  static int64_t packed_nbytes(Encoding encoding, int64_t n_out, int64_t n_in);
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  // Read and pack groups [g_begin, g_end) of a packed weight; threads may share the work.
  void pack_range(int64_t g_begin, int64_t g_end);

  // y[:, 16*g_begin : 16*g_end] (=, +=) x * w^T for T tokens. Integer encodings read `x8`, float
  // encodings `xf` (row stride ldx). Threads may run disjoint groups at once, each with its own
  // scratch of `scratch_nbytes()` bytes (64-byte aligned). Streamed weights may throw WeightReadError.
  void matmul_groups(int64_t g_begin, int64_t g_end, const Q8Rows& x8, const float* xf, int64_t ldx,
                     int64_t n_tokens, float* y, int64_t ldy, bool accumulate, uint8_t* scratch) const;
  // float32 [n, n_in] of the named rows, equal to dequantising them. Indices are below n_out.
  void rows(const int64_t* indices, int64_t n, float* out) const;

  Encoding encoding() const { return encoding_; }
  Residency residency() const { return residency_; }
  int64_t n_out() const { return n_out_; }
  int64_t n_in() const { return n_in_; }
  int64_t n_groups() const { return (n_out_ + 15) / 16; }
  bool is_integer() const { return capax::is_integer(encoding_); }
  // Resident bytes: the packed form, or 0 when streamed.
  int64_t nbytes() const { return residency_ == Residency::Packed ? n_groups() * group_nbytes_ : 0; }
  // Bytes of the file form, which is what a streamed call reads.
  int64_t file_nbytes() const { return n_out_ * row_nbytes_; }
  int64_t scratch_nbytes() const;

 private:
  Weight(Encoding encoding, int64_t n_out, int64_t n_in, int64_t nbytes, Residency residency,
         std::shared_ptr<WeightArena> arena);
  void read_rows(int64_t row, int64_t n_rows, uint8_t* out) const;
  int64_t groups_per_read() const;

  Encoding encoding_;
  int64_t n_out_, n_in_, row_nbytes_, group_nbytes_;
  Residency residency_;
  std::shared_ptr<WeightArena> arena_;
  uint8_t* packed_ = nullptr;
  std::shared_ptr<WeightFile> file_;  // null when made from bytes
  int64_t offset_ = 0;
};

}  // namespace capax
