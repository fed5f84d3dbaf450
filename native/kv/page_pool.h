// The memory of the paged KV cache: pages of one size, reference-counted.
//
// One page holds 64 positions of every layer of one sequence; its id is an index into one
// reserved range of addresses, so a page table is an int32 array. Memory is taken from the
// system when a page is first used, and a page is all zeros when it is handed out.
// Not thread-safe: the engine owns it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace capax {

class PagePool {
 public:
  // page_nbytes: bytes of one page over all layers. Throws std::bad_alloc if the address range
  // or the pool's own lists cannot be reserved.
  PagePool(int64_t page_nbytes, int64_t capacity);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  int32_t allocate();         // -1 when the pool is full; the new page has one reference
  void retain(int32_t page);  // throws std::invalid_argument for a page not in use
  void release(int32_t page);
  int32_t copy(int32_t page);  // a private copy with one reference, -1 when the pool is full
  int32_t references(int32_t page) const;

  // For an id in [0, capacity).
  bool is_in_use(int32_t page) const { return references_[static_cast<size_t>(page)] > 0; }

  uint8_t* base() const { return base_; }
  int64_t page_nbytes() const { return page_nbytes_; }
  int64_t page_stride() const { return stride_; }
  int64_t capacity() const { return capacity_; }
  int64_t n_in_use() const { return n_in_use_; }
  // Bytes taken from the system: pages ever used and not given back by `trim`.
  int64_t resident_nbytes() const { return touched_ * stride_; }
  // Give the memory of every free page back to the system.
  void trim();
  // Free + used = capacity, and every free page has no reference.
  bool check_integrity() const;

 private:
  void check(int32_t page) const;

  int64_t page_nbytes_;
  int64_t stride_;  // page_nbytes rounded up to the system's page size
  int64_t capacity_;
  int64_t n_in_use_ = 0;
  int64_t touched_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_nbytes_ = 0;
  uint8_t* base_ = nullptr;  // on a border of 2 MiB
  std::vector<int32_t> references_;
  std::vector<uint8_t> dirty_;   // used before: must be zeroed when handed out again
  std::vector<int32_t> free_;    // a stack; the lowest fresh page is on top at the start
};

}  // namespace capax
