#include "kv/page_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>
#include <stdexcept>

namespace capax {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

PagePool::PagePool(int64_t page_nbytes, int64_t capacity) : page_nbytes_(page_nbytes), capacity_(capacity) {
  if (page_nbytes <= 0 || capacity <= 0 || capacity > INT32_MAX) throw std::invalid_argument("page pool extent");
  const int64_t unit = sysconf(_SC_PAGESIZE);
  if (page_nbytes > INT64_MAX - unit) throw std::bad_alloc();
  stride_ = (page_nbytes + unit - 1) / unit * unit;
  if (stride_ > (INT64_MAX - kHugePage) / capacity) throw std::bad_alloc();
  // First what may throw: nobody would give the mapping back.
  references_.assign(static_cast<size_t>(capacity), 0);
  dirty_.assign(static_cast<size_t>(capacity), 0);
  free_.reserve(static_cast<size_t>(capacity));
  for (int64_t page = capacity - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
  mapping_nbytes_ = static_cast<size_t>(stride_ * capacity + kHugePage);
  mapping_ = mmap(nullptr, mapping_nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping_);
  base_ = reinterpret_cast<uint8_t*>((begin + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
  // One address translation for 2 MiB instead of 512: decode reads the whole cache every step.
  madvise(base_, static_cast<size_t>(stride_ * capacity), MADV_HUGEPAGE);
#endif
}

PagePool::~PagePool() { munmap(mapping_, mapping_nbytes_); }

void PagePool::check(int32_t page) const {
  if (page < 0 || page >= capacity_ || references_[static_cast<size_t>(page)] == 0)
    throw std::invalid_argument("page " + std::to_string(page) + " is not in use");
}

int32_t PagePool::allocate() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  const size_t i = static_cast<size_t>(page);
  if (dirty_[i]) {
    std::memset(base_ + page * stride_, 0, static_cast<size_t>(page_nbytes_));
  } else {
    dirty_[i] = 1;
    ++touched_;
  }
  references_[i] = 1;
  ++n_in_use_;
  return page;
}

void PagePool::retain(int32_t page) {
  check(page);
  ++references_[static_cast<size_t>(page)];
}

void PagePool::release(int32_t page) {
  check(page);
  if (--references_[static_cast<size_t>(page)] == 0) {
    free_.push_back(page);
    --n_in_use_;
  }
}

int32_t PagePool::copy(int32_t page) {
  check(page);
  const int32_t fresh = allocate();
  if (fresh >= 0) std::memcpy(base_ + fresh * stride_, base_ + page * stride_, static_cast<size_t>(page_nbytes_));
  return fresh;
}

int32_t PagePool::references(int32_t page) const {
  check(page);
  return references_[static_cast<size_t>(page)];
}

void PagePool::trim() {
  for (const int32_t page : free_) {
    const size_t i = static_cast<size_t>(page);
    if (!dirty_[i]) continue;
    madvise(base_ + page * stride_, static_cast<size_t>(stride_), MADV_DONTNEED);
    dirty_[i] = 0;
    --touched_;
  }
}

bool PagePool::check_integrity() const {
  int64_t used = 0;
  for (const int32_t count : references_) {
    if (count < 0) return false;
    used += count > 0;
  }
  for (const int32_t page : free_)
    if (references_[static_cast<size_t>(page)] != 0) return false;
  return used == n_in_use_ && used + static_cast<int64_t>(free_.size()) == capacity_;
}

}  // namespace capax
