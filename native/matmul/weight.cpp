#include "matmul/weight.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"
#include "matmul/pack.h"
#include "quants/quants.h"

namespace capax {

namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kReadNbytes = 256 << 10;  // one pread: long enough to stream, short enough for L2

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

std::string at_offset(const std::string& path, int64_t offset) {
  return "'" + path + "' at byte " + std::to_string(offset);
}

// The bytes of the file form; n_out and n_in are checked before anything is computed from them.
int64_t checked_nbytes(Encoding encoding, int64_t n_out, int64_t n_in) {
  const EncodingInfo& info = encoding_info(encoding);
  const std::string what = std::string(info.name) + " matrix [" + std::to_string(n_out) + ", " +
                           std::to_string(n_in) + "]";
  constexpr int64_t most = int64_t{1} << 31;  // rows and inputs; keeps every product below 2^63
  if (n_out < 1 || n_in < 1 || n_out > most || n_in > most)
    throw std::invalid_argument(what + " must have 1 to 2^31 rows and inputs");
  if (n_in % info.block_size != 0)
    throw std::invalid_argument(what + " needs inputs in multiples of " + std::to_string(info.block_size));
  const int64_t row = row_nbytes(encoding, n_in);
  if (row > (int64_t{1} << 62) / n_out) throw std::invalid_argument(what + " takes more than 2^62 bytes");
  return n_out * row;
}

void check_sizes(Encoding encoding, int64_t n_out, int64_t n_in, int64_t nbytes) {
  const int64_t needed = checked_nbytes(encoding, n_out, n_in);
  if (nbytes != needed)
    throw std::invalid_argument(std::string(encoding_info(encoding).name) + " matrix [" + std::to_string(n_out) + ", " +
                                std::to_string(n_in) + "] takes " + std::to_string(needed / n_out) +
                                " bytes per row, but " + std::to_string(nbytes) + " bytes were given for all rows");
}

}  // namespace

std::shared_ptr<WeightFile> WeightFile::open(const std::string& path) {
  // Weights of one file share its descriptor as long as any of them lives.
  static std::mutex mutex;
  static std::map<std::pair<dev_t, ino_t>, std::weak_ptr<WeightFile>> opened;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw WeightReadError("cannot open '" + path + "': " + strerror(errno));
  std::shared_ptr<WeightFile> file(new WeightFile(path, fd));
  struct stat status;
  if (fstat(fd, &status) != 0) throw WeightReadError("cannot examine '" + path + "': " + strerror(errno));
  const std::lock_guard<std::mutex> lock(mutex);
  std::weak_ptr<WeightFile>& known = opened[{status.st_dev, status.st_ino}];
  if (std::shared_ptr<WeightFile> shared = known.lock()) return shared;
  known = file;
  return file;
}

WeightFile::~WeightFile() { close(fd_); }

int64_t WeightFile::nbytes() const {
  struct stat status;
  if (fstat(fd_, &status) != 0) throw WeightReadError("cannot examine '" + path_ + "': " + strerror(errno));
  return status.st_size;
}

void WeightFile::read(int64_t offset, int64_t nbytes, uint8_t* out) const {
  while (nbytes > 0) {
    const ssize_t got = pread(fd_, out, static_cast<size_t>(nbytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw WeightReadError("cannot read " + at_offset(path_, offset) + ": " + strerror(errno));
    if (got == 0)
      throw WeightReadError(at_offset(path_, offset) + " ends " + std::to_string(nbytes) +
                            " bytes before its weight does: the file was truncated while in use");
    out += got, offset += got, nbytes -= got;
  }
}

WeightArena::WeightArena(int64_t nbytes) : nbytes_(nbytes) {
  if (nbytes < 1 || nbytes > (int64_t{1} << 46)) throw std::bad_alloc();
  // Small regions keep to ordinary pages: rounding them up to 2 MiB would waste memory.
  const bool huge = nbytes >= kHugePage / 2;
  mapping_nbytes_ = huge ? round_up(nbytes, kHugePage) + kHugePage : round_up(nbytes, 4096);
  mapping_ = mmap(nullptr, static_cast<size_t>(mapping_nbytes_), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  const int64_t address = static_cast<int64_t>(reinterpret_cast<intptr_t>(mapping_));
  base_ = static_cast<uint8_t*>(mapping_) + (huge ? round_up(address, kHugePage) - address : 0);
#ifdef MADV_HUGEPAGE
  if (huge) madvise(base_, static_cast<size_t>(nbytes / kHugePage * kHugePage), MADV_HUGEPAGE);  // advice only
#endif
}

WeightArena::~WeightArena() { munmap(mapping_, static_cast<size_t>(mapping_nbytes_)); }

uint8_t* WeightArena::take(int64_t nbytes) {
  if (nbytes < 0 || nbytes > nbytes_) return nullptr;
  const int64_t size = round_up(nbytes, 64);
  int64_t used = used_.load();
  do {
    if (used + nbytes > nbytes_) return nullptr;
  } while (!used_.compare_exchange_weak(used, used + size));
  return base_ + used;
}

Weight::Weight(Encoding encoding, int64_t n_out, int64_t n_in, int64_t nbytes, Residency residency,
               std::shared_ptr<WeightArena> arena)
    : encoding_(encoding), n_out_(n_out), n_in_(n_in), residency_(residency), arena_(std::move(arena)) {
  check_sizes(encoding, n_out, n_in, nbytes);
  row_nbytes_ = row_nbytes(encoding, n_in);
  group_nbytes_ = capax::group_nbytes(encoding, n_in);
  if (residency_ == Residency::Streamed) return;
  const int64_t packed = n_groups() * group_nbytes_;
  if (!arena_) arena_ = std::make_shared<WeightArena>(packed);
  packed_ = arena_->take(packed);
  if (!packed_)
    throw std::invalid_argument("weight of " + std::to_string(packed) + " packed bytes does not fit the arena of " +
                                std::to_string(arena_->nbytes()) + " bytes, of which " +
                                std::to_string(arena_->used()) + " are taken");
}

std::shared_ptr<Weight> Weight::open(const std::string& path, int64_t offset, int64_t nbytes, Encoding encoding,
                                     int64_t n_out, int64_t n_in, Residency residency,
                                     std::shared_ptr<WeightArena> arena) {
  check_sizes(encoding, n_out, n_in, nbytes);
  if (offset < 0) throw std::invalid_argument("offset " + std::to_string(offset) + " in '" + path + "' is negative");
  std::shared_ptr<WeightFile> file = WeightFile::open(path);
  const int64_t size = file->nbytes();
  if (size < offset || size - offset < nbytes)
    throw WeightReadError("weight of " + std::to_string(nbytes) + " bytes in " + at_offset(path, offset) +
                          " ends behind the file's " + std::to_string(size) + " bytes");
  std::shared_ptr<Weight> weight(new Weight(encoding, n_out, n_in, nbytes, residency, std::move(arena)));
  weight->file_ = std::move(file);
  weight->offset_ = offset;
  return weight;
}

std::shared_ptr<Weight> Weight::from_bytes(const uint8_t* bytes, int64_t nbytes, Encoding encoding, int64_t n_out,
                                           int64_t n_in, std::shared_ptr<WeightArena> arena) {
  std::shared_ptr<Weight> weight(new Weight(encoding, n_out, n_in, nbytes, Residency::Packed, std::move(arena)));
  for (int64_t g = 0; g < weight->n_groups(); ++g) {
    const int n_rows = static_cast<int>(std::min<int64_t>(16, n_out - 16 * g));
    pack_group(encoding, bytes + 16 * g * weight->row_nbytes_, n_rows, n_in, weight->packed_ + g * weight->group_nbytes_);
  }
  return weight;
}

int64_t Weight::packed_nbytes(Encoding encoding, int64_t n_out, int64_t n_in) {
  checked_nbytes(encoding, n_out, n_in);
  return capax::packed_nbytes(encoding, n_out, n_in);
}

void Weight::read_rows(int64_t row, int64_t n_rows, uint8_t* out) const {
  file_->read(offset_ + row * row_nbytes_, n_rows * row_nbytes_, out);
}

int64_t Weight::groups_per_read() const {
  return std::clamp<int64_t>(kReadNbytes / (16 * row_nbytes_), 1, n_groups());
}

int64_t Weight::scratch_nbytes() const {
  if (residency_ == Residency::Packed) return 0;
  return round_up(groups_per_read() * 16 * row_nbytes_, 64) + groups_per_read() * group_nbytes_;
}

void Weight::pack_range(int64_t g_begin, int64_t g_end) {
  if (residency_ != Residency::Packed || !file_) return;
  const int64_t step = groups_per_read();
  std::vector<uint8_t> raw(static_cast<size_t>(step * 16 * row_nbytes_));
  for (int64_t g0 = g_begin; g0 < g_end; g0 += step) {
    const int64_t g1 = std::min(g0 + step, g_end);
    read_rows(16 * g0, std::min(16 * g1, n_out_) - 16 * g0, raw.data());
    for (int64_t g = g0; g < g1; ++g) {
      const int n_rows = static_cast<int>(std::min<int64_t>(16, n_out_ - 16 * g));
      pack_group(encoding_, raw.data() + 16 * (g - g0) * row_nbytes_, n_rows, n_in_, packed_ + g * group_nbytes_);
    }
  }
}

void Weight::matmul_groups(int64_t g_begin, int64_t g_end, const Q8Rows& x8, const float* xf, int64_t ldx,
                           int64_t n_tokens, float* y, int64_t ldy, bool accumulate, uint8_t* scratch) const {
  const MatmulFn fn = kernels().matmul.of(encoding_);
  MatmulArgs args{};
  args.n_in = n_in_, args.n_out = n_out_;
  args.x = x8, args.xf = xf, args.ldx = ldx, args.n_tokens = n_tokens;
  args.y = y, args.ldy = ldy, args.accumulate = accumulate;
  if (residency_ == Residency::Packed) {
    args.groups = packed_ + g_begin * group_nbytes_;
    args.group_begin = g_begin, args.group_end = g_end;
    fn(args);
    return;
  }
  const int64_t step = groups_per_read();
  uint8_t* packed = scratch + round_up(step * 16 * row_nbytes_, 64);
  for (int64_t g0 = g_begin; g0 < g_end; g0 += step) {
    const int64_t g1 = std::min(g0 + step, g_end);
    read_rows(16 * g0, std::min(16 * g1, n_out_) - 16 * g0, scratch);
    for (int64_t g = g0; g < g1; ++g) {
      const int n_rows = static_cast<int>(std::min<int64_t>(16, n_out_ - 16 * g));
      pack_group(encoding_, scratch + 16 * (g - g0) * row_nbytes_, n_rows, n_in_, packed + (g - g0) * group_nbytes_);
    }
    args.groups = packed;
    args.group_begin = g0, args.group_end = g1;
    fn(args);
  }
}

void Weight::rows(const int64_t* indices, int64_t n, float* out) const {
  std::vector<uint8_t> raw;
  if (residency_ == Residency::Streamed) raw.resize(static_cast<size_t>(row_nbytes_));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = indices[i];
    if (residency_ == Residency::Streamed) {
      read_rows(row, 1, raw.data());
      dequantize(encoding_, raw.data(), n_in_, out + i * n_in_);
    } else {
      dequantize_packed_row(encoding_, packed_ + row / 16 * group_nbytes_, static_cast<int>(row % 16), n_in_,
                            out + i * n_in_);
    }
  }
}

}  // namespace capax
