// Which sequences of a step begin with the same pages of the cache.
#pragma once

#include <cstdint>
#include <vector>

namespace capax {

struct SequenceSlice;

// Sequences, one new token each, whose first `n_pages` pages are the same and full.
struct SharedPrefix {
  std::vector<int32_t> sequences;  // indices into the step's sequences
  int64_t n_pages;
};

// Put sequences into groups that share pages; those that share none with another are in no group.
// Sequences with several new tokens take no part.
std::vector<SharedPrefix> shared_prefixes(const std::vector<SequenceSlice>& sequences);

}  // namespace capax
