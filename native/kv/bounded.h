// What a cache that keeps a bounded set of tokens needs: dropping entries, and how much attention
// each entry gets.
//
// Such a cache lays its entries into pages as `full` does, one after another whatever their positions
// were; every KV head may hold other tokens.
#pragma once

#include <stdint.h>

#include "attention/attention.h"

namespace capax {

// Keep n_keep entries of a head: entry i becomes what entry keep[i] was, its bytes unchanged.
// keep ascends strictly, so the move is in place. What lies behind them is left as it is.
void keep_entries(const KVView& view, int32_t kv_head, const int32_t* keep, int64_t n_keep);

// weights[j] += what the queries of `a` give to entry j of a KV head: the softmax of each of its
// n_group heads, token after token. Causal over entries, without window. The same bits however the
// tokens are cut into calls, and on every instruction set that has the same exponential.
void add_attention(const Attend& a, int32_t kv_head, float* weights);

}  // namespace capax
