#include "program/shared_prefix.h"

#include <algorithm>

#include "program/program.h"

namespace capax {

namespace {

// Pages that hold only positions before the new token: nobody writes to them any more.
int64_t full_pages(const SequenceSlice& s) { return s.position0 / kPageTokens; }

int64_t common_pages(const SequenceSlice& a, const SequenceSlice& b) {
  const int64_t n = std::min(full_pages(a), full_pages(b));
  int64_t i = 0;
  while (i < n && a.page_table[i] == b.page_table[i]) ++i;
  return i;
}

}  // namespace

std::vector<SharedPrefix> shared_prefixes(const std::vector<SequenceSlice>& sequences) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < sequences.size(); ++i)
    if (sequences[i].token_end - sequences[i].token_begin == 1 && full_pages(sequences[i]) > 0)
      order.push_back(static_cast<int32_t>(i));
  const auto at = [&](size_t i) -> const SequenceSlice& { return sequences[static_cast<size_t>(order[i])]; };
  // In the order of their page tables, those that share most stand beside each other.
  std::sort(order.begin(), order.end(), [&](int32_t i, int32_t j) {
    const SequenceSlice &a = sequences[static_cast<size_t>(i)], &b = sequences[static_cast<size_t>(j)];
    return std::lexicographical_compare(a.page_table, a.page_table + full_pages(a), b.page_table,
                                        b.page_table + full_pages(b));
  });
  std::vector<SharedPrefix> groups;
  for (size_t begin = 0; begin + 1 < order.size();) {
    // Take members as long as each adds more shared reading than its arrival takes from the others.
    size_t end = begin + 1;
    int64_t shared = 0;
    while (end < order.size()) {
      const int64_t with = std::min(end == begin + 1 ? full_pages(at(begin)) : shared, common_pages(at(end - 1), at(end)));
      const int64_t saved = static_cast<int64_t>(end - begin - 1) * shared;
      if (with == 0 || static_cast<int64_t>(end - begin) * with < saved) break;
      shared = with;
      ++end;
    }
    if (end - begin > 1)
      groups.push_back({{order.begin() + static_cast<std::ptrdiff_t>(begin), order.begin() + static_cast<std::ptrdiff_t>(end)}, shared});
    begin = end;
  }
  return groups;
}

}  // namespace capax
