#include "program/attention.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace capax {
namespace {

constexpr int64_t kBlockTokens = 16;  // tokens that one item of phase 1 stores
constexpr size_t kMaxGroup = 48;      // attend_tile_tokens is never more
constexpr int64_t kSplitTokens = 4;   // sequences with at most so many tokens are split by span

int64_t align16(int64_t n) { return (n + 15) / 16 * 16; }

// Scratch to encode one head of a block: its keys, its values, what the codec needs.
int64_t encode_floats(const KVLayout& layout, const Codec& codec) {
  return codec.block_tokens() * (layout.k_dim + kv_v_stride(layout)) + codec.scratch_floats();
}

}  // namespace

Attend AttentionOperation::attend_for(const Step& step, const SequenceSlice& sequence) const {
  Attend a{};
  a.view = {layout_, step.pages + o_.layer * layer_page_nbytes(layout_), step.page_stride, sequence.page_table};
  if (step.codes.n_passing > 0)
    a.view.passing = program_.operation_scratch().reserve(0) + passing_ * static_cast<int64_t>(sizeof(float));
  a.ldq = program_.width(o_.q);
  a.q = program_.rows(o_.q) + sequence.token_begin * a.ldq;
  a.ldo = program_.width(o_.out);
  a.out = program_.rows(o_.out) + sequence.token_begin * a.ldo;
  a.n_tokens = sequence.token_end - sequence.token_begin;
  a.position0 = sequence.position0;
  a.n_group = n_group();
  a.window = o_.window;
  a.n_keys = o_.causal ? 0 : sequence.position0 + a.n_tokens;
  a.scale = o_.scale;
  return a;
}

CodedView AttentionOperation::codes_of(const Step& step, const SequenceSlice& sequence) const {
  const Codec& codec = *step.codes.codec;
  return {&codec, step.codes.pages + codec.layer_offset(o_.layer), step.codes.page_stride, sequence.code_table,
          o_.layer, {o_.cos, o_.sin, o_.style}, 0};
}

// The same for a tile, all of whose tokens lie in one block.
Attend AttentionOperation::attend_for(const Step& step, const Tile& tile) const {
  const SequenceSlice& sequence = step.sequences[static_cast<size_t>(tile.sequence)];
  Attend a = attend_for(step, sequence);
  if (!step.codes.codec) return a;
  a.codes = codes_of(step, sequence);
  a.codes.n_pages = step.codes.n_blocks(a.position0 + tile.token_begin) * (a.codes.codec->block_tokens() / kPageTokens);
  const int64_t tables = tables_of_[static_cast<size_t>(tile.sequence)];
  if (tables >= 0) {
    a.tables = reinterpret_cast<const float*>(program_.operation_scratch().reserve(0)) + tables;
    a.ld_table = ld_table_;
  }
  return a;
}

// The blocks of a sequence that this step encodes in this layer.
void AttentionOperation::find_encodings(const Step& step, int32_t sequence) {
  const SequenceSlice& s = step.sequences[static_cast<size_t>(sequence)];
  const Codec& codec = *step.codes.codec;
  const int64_t end = s.position0 + s.token_end - s.token_begin;
  for (int64_t block = std::max<int64_t>(s.position0 / codec.block_tokens() - 1, 0); block < end / codec.block_tokens(); ++block) {
    for (int32_t head = 0; head < o_.n_kv_heads; ++head) {
      const int64_t at = step.codes.encoded_at(block, o_.layer * o_.n_kv_heads + head, codec.n_layers() * o_.n_kv_heads);
      if (at >= s.position0 && at < end) encodings_.push_back({sequence, head, block});
    }
  }
}

// Room behind `begin` for what a codec prepares of the queries of sequences with few tokens; its end.
int64_t AttentionOperation::plan_tables(const Step& step, int64_t begin) {
  const Codec& codec = *step.codes.codec;
  ld_table_ = codec.scores_codes(o_.layer) ? codec.table_floats(o_.layer) : 0;
  for (const SequenceSlice& s : step.sequences) {
    const int64_t n = s.token_end - s.token_begin;
    const bool has_codes = step.codes.n_blocks(s.position0 + n - 1) > 0;
    const bool wanted = ld_table_ > 0 && n <= kSplitTokens && has_codes;
    tables_of_.push_back(wanted ? begin : -1);
    if (wanted) begin += n * o_.n_heads * ld_table_;
  }
  return begin;
}

void AttentionOperation::prepare(const Step& step, int n_threads) {
  layout_ = {step.kv_type, o_.n_kv_heads, o_.head_dim, o_.head_dim};
  blocks_.clear();
  tiles_.clear();
  groups_.clear();
  encodings_.clear();
  tables_of_.clear();
  has_split_ = false;
  const Codec* codec = step.codes.codec;
  int64_t partials = 0;
  const int64_t tile_tokens = attend_tile_tokens(n_group());
  std::vector<int32_t> first_tile;  // of each sequence
  for (int32_t i = 0; i < static_cast<int32_t>(step.sequences.size()); ++i) {
    const SequenceSlice& sequence = step.sequences[static_cast<size_t>(i)];
    const Attend a = attend_for(step, sequence);
    first_tile.push_back(static_cast<int32_t>(tiles_.size()));
    for (int64_t begin = 0; begin < a.n_tokens; begin += kBlockTokens)
      blocks_.push_back({i, begin, std::min(begin + kBlockTokens, a.n_tokens), 0, 0, 0});
    if (codec) find_encodings(step, i);
    const bool split = a.n_tokens <= kSplitTokens;
    const int64_t stride = split ? 1 : tile_tokens;
    std::vector<int64_t> cuts = {0};
    while (cuts.back() < a.n_tokens) {
      const int64_t border = codec ? codec->block_tokens() - (a.position0 + cuts.back()) % codec->block_tokens() : stride;
      cuts.push_back(std::min(cuts.back() + std::min(stride, border), a.n_tokens));
    }
    // The last tokens see the most keys: their items come first, so that the threads end together.
    for (size_t cut = cuts.size() - 1; cut-- > 0;) {
      const int64_t begin = cuts[cut];
      Tile tile{i, begin, cuts[cut + 1], 0, 0, 0};
      if (split) {
        const Range spans = visible_spans(a, a.position0 + begin);
        tile.n_spans = spans.end - spans.begin;
        tile.partials = partials;
        partials += o_.n_kv_heads * tile.n_spans * n_group() * partial_floats(layout_);
        has_split_ = has_split_ || tile.n_spans > 1;
      }
      tiles_.push_back(tile);
    }
  }
  if (o_.window == 0 && o_.causal) {
    for (const SharedPrefix& shared : step.shared) {
      const int64_t n_spans = (shared.n_pages * kPageTokens + kSpanTokens - 1) / kSpanTokens;
      const int64_t n = static_cast<int64_t>(shared.sequences.size());
      for (int64_t begin = 0; begin < n; begin += tile_tokens) {
        Group group{{}, {}, shared.n_pages, n_spans};
        for (int64_t i = begin; i < std::min(begin + tile_tokens, n); ++i) {
          const size_t sequence = static_cast<size_t>(shared.sequences[static_cast<size_t>(i)]);
          group.members.push_back(attend_for(step, step.sequences[sequence]));
          group.tiles.push_back(first_tile[sequence]);
          tiles_[static_cast<size_t>(first_tile[sequence])].n_grouped = n_spans;
        }
        groups_.push_back(std::move(group));
      }
    }
  }
  first_item_.assign(1, 0);
  for (const Group& group : groups_) first_item_.push_back(first_item_.back() + o_.n_kv_heads * group.n_spans);
  for (const Tile& tile : tiles_)
    first_item_.push_back(first_item_.back() + o_.n_kv_heads * (tile.n_spans ? tile.n_spans - tile.n_grouped : 1));
  share_tiles(step, n_threads);
  rank_floats_ = align16(attend_scratch_floats(layout_, n_group(), codec));
  if (codec) rank_floats_ = std::max(rank_floats_, align16(encode_floats(layout_, *codec)));
  passing_ = align16(rank_floats_ * n_threads + partials);
  if (codec) passing_ = plan_tables(step, passing_);
  const int64_t n_passing = step.codes.n_passing * layer_page_nbytes(layout_);
  uint8_t* end = program_.operation_scratch().reserve(passing_ * static_cast<int64_t>(sizeof(float)) + n_passing) +
                 passing_ * static_cast<int64_t>(sizeof(float));
  if (n_passing > 0 && kv_v_stride(layout_) != o_.head_dim) std::memset(end, 0, static_cast<size_t>(n_passing));
}

// Of a prompt each rank has the tiles of the rows that are its own in linear maps too.
void AttentionOperation::share_tiles(const Step& step, int n_threads) {
  owned_.clear();
  if (n_threads == 1 || has_split_ || !groups_.empty()) return;
  owned_.resize(static_cast<size_t>(n_threads));
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const int64_t row = step.sequences[static_cast<size_t>(tiles_[i].sequence)].token_begin + tiles_[i].token_begin;
    std::vector<int64_t>& items = owned_[static_cast<size_t>(row * n_threads / step.n_tokens)];
    for (int64_t item = first_item_[i]; item < first_item_[i + 1]; ++item) items.push_back(item);
  }
  shares_.reset(n_threads);
}

void AttentionOperation::store(Context& context, const SequenceSlice& sequence, int64_t begin, int64_t end,
                               int32_t kv_head) const {
  const NormKernels& norms = context.kernels.norms;
  const int64_t half = o_.head_dim / 2, ldk = program_.width(o_.k), ldv = program_.width(o_.v);
  const auto turn = [&](float* heads, int64_t n_heads, const std::vector<float>& gain, int64_t position) {
    if (!gain.empty()) norms.rms_norm(heads, n_heads, o_.head_dim, gain.data(), o_.norm_eps, heads);
    norms.rope(heads, n_heads, o_.head_dim, o_.head_dim, o_.cos + position * half, o_.sin + position * half,
               o_.style);
  };
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = sequence.token_begin + t, position = sequence.position0 + t;
    float* q = program_.rows(o_.q) + row * program_.width(o_.q) + kv_head * n_group() * o_.head_dim;
    turn(q, n_group(), o_.q_norm, position);
    turn(program_.rows(o_.k) + row * ldk + kv_head * o_.head_dim, 1, o_.k_norm, position);
  }
  const KVView view = attend_for(context.step, sequence).view;
  const int64_t row = sequence.token_begin + begin;
  context.kernels.attention.append(view, program_.rows(o_.k) + row * ldk, ldk, program_.rows(o_.v) + row * ldv, ldv,
                                   end - begin, sequence.position0 + begin, kv_head, kv_head + 1);
}

void AttentionOperation::encode(Context& context, const Encoding& item, float* scratch) const {
  const SequenceSlice& sequence = context.step.sequences[static_cast<size_t>(item.sequence)];
  const KVView view = attend_for(context.step, sequence).view;
  const Codec& codec = *context.step.codes.codec;
  const int64_t n_pages = codec.block_tokens() / kPageTokens;
  float* k = scratch;
  float* v = k + codec.block_tokens() * layout_.k_dim;
  for (int64_t page = 0; page < n_pages; ++page)
    context.kernels.attention.read_page(view, item.block * n_pages + page, item.kv_head,
                                        k + page * kPageTokens * layout_.k_dim,
                                        v + page * kPageTokens * kv_v_stride(layout_));
  codec.encode(code_block_at(codes_of(context.step, sequence), item.block, item.kv_head), k, v,
               v + codec.block_tokens() * kv_v_stride(layout_));
}

void AttentionOperation::fill_tables(Context& context, const Tile& block, int32_t kv_head) const {
  const int64_t tables = tables_of_[static_cast<size_t>(block.sequence)];
  if (tables < 0) return;
  float* first = reinterpret_cast<float*>(program_.operation_scratch().reserve(0)) + tables;
  const Attend a = attend_for(context.step, context.step.sequences[static_cast<size_t>(block.sequence)]);
  for (int64_t t = block.token_begin; t < block.token_end; ++t)
    for (int64_t head = kv_head * n_group(); head < (kv_head + 1) * n_group(); ++head)
      context.step.codes.codec->prepare(o_.layer, kv_head, a.q + t * a.ldq + head * o_.head_dim,
                                        first + (t * o_.n_heads + head) * ld_table_);
}

void AttentionOperation::attend_tile(Context& context, const Tile& tile, int64_t item, float* scratch,
                                     float* partials) const {
  const AttentionKernels& kernels = context.kernels.attention;
  const Attend a = attend_for(context.step, tile);
  if (tile.n_spans == 0) return kernels.attend(a, static_cast<int32_t>(item), tile.token_begin, tile.token_end, scratch);
  const int64_t n_partial = n_group() * partial_floats(layout_), n_own = tile.n_spans - tile.n_grouped;
  const int32_t kv_head = static_cast<int32_t>(item / n_own);
  const int64_t span = tile.n_grouped + item % n_own;
  float* first = partials + tile.partials + kv_head * tile.n_spans * n_partial;
  kernels.attend_span(a, kv_head, tile.token_begin, visible_spans(a, a.position0 + tile.token_begin).begin + span, scratch,
                      first + span * n_partial);
  if (tile.n_spans == 1) kernels.merge(a, kv_head, tile.token_begin, first, n_partial);
}

void AttentionOperation::attend_group(Context& context, const Group& group, int64_t item, float* scratch,
                                      float* partials) const {
  const AttentionKernels& kernels = context.kernels.attention;
  const int32_t kv_head = static_cast<int32_t>(item / group.n_spans);
  const int64_t span = item % group.n_spans, n_partial = n_group() * partial_floats(layout_);
  std::array<float*, kMaxGroup> of_member;
  for (size_t i = 0; i < group.members.size(); ++i) {
    const Tile& tile = tiles_[static_cast<size_t>(group.tiles[i])];
    of_member[i] = partials + tile.partials + (kv_head * tile.n_spans + span) * n_partial;
  }
  kernels.attend_shared_span(group.members.data(), static_cast<int64_t>(group.members.size()), kv_head, span,
                             group.n_pages, scratch, of_member.data());
  for (size_t i = 0; i < group.members.size(); ++i)
    if (tiles_[static_cast<size_t>(group.tiles[i])].n_spans == 1)
      kernels.merge(group.members[i], kv_head, 0, of_member[i], n_partial);
}

void AttentionOperation::run(Context& context, int rank) {
  const Step& step = context.step;
  if (!step.pages) return;  // a cache outside the program does this layer
  const AttentionKernels& kernels = context.kernels.attention;
  const int64_t n_stores = static_cast<int64_t>(blocks_.size()) * o_.n_kv_heads;
  const int n_threads = context.team.size();
  const int64_t last_store = n_stores * (rank + 1) / n_threads;  // all take the same time
  for (int64_t item = n_stores * rank / n_threads; item < last_store; ++item) {
    const Tile& block = blocks_[static_cast<size_t>(item / o_.n_kv_heads)];
    store(context, step.sequences[static_cast<size_t>(block.sequence)], block.token_begin, block.token_end,
          static_cast<int32_t>(item % o_.n_kv_heads));
    if (step.codes.codec) fill_tables(context, block, static_cast<int32_t>(item % o_.n_kv_heads));
  }
  context.team.barrier(rank);

  float* memory = reinterpret_cast<float*>(program_.operation_scratch().reserve(0));
  float* scratch = memory + rank * rank_floats_;
  if (!encodings_.empty()) {
    for (size_t item = static_cast<size_t>(rank); item < encodings_.size(); item += static_cast<size_t>(n_threads))
      encode(context, encodings_[item], scratch);
    context.team.barrier(rank);
  }
  float* partials = memory + n_threads * rank_floats_;
  const int64_t n_partial = n_group() * partial_floats(layout_);
  const auto attend = [&](int64_t item) {
    const auto after = std::upper_bound(first_item_.begin(), first_item_.end(), item);
    const size_t index = static_cast<size_t>(after - first_item_.begin() - 1);
    const int64_t local = item - first_item_[index];
    if (index < groups_.size())
      attend_group(context, groups_[index], local, scratch, partials);
    else
      attend_tile(context, tiles_[index - groups_.size()], local, scratch, partials);
  };
  if (!owned_.empty()) {
    const auto items_of = [&](int owner) -> const std::vector<int64_t>& { return owned_[static_cast<size_t>(owner)]; };
    shares_.take(rank, 1, [&](int owner) { return static_cast<int64_t>(items_of(owner).size()); },
                 [&](int owner, int64_t begin, int64_t) { attend(items_of(owner)[static_cast<size_t>(begin)]); });
    return;
  }
  const int64_t n_items = first_item_.back();
  for (int64_t item = rank; item < n_items; item = n_threads + counter.next.fetch_add(1, std::memory_order_relaxed))
    attend(item);
  if (!has_split_) return;

  context.team.barrier(rank);
  const int64_t n_merges = static_cast<int64_t>(tiles_.size()) * o_.n_kv_heads;
  for (int64_t item = rank; item < n_merges; item += n_threads) {
    const Tile& tile = tiles_[static_cast<size_t>(item / o_.n_kv_heads)];
    if (tile.n_spans <= 1) continue;
    const int32_t kv_head = static_cast<int32_t>(item % o_.n_kv_heads);
    const Attend a = attend_for(step, step.sequences[static_cast<size_t>(tile.sequence)]);
    kernels.merge(a, kv_head, tile.token_begin, partials + tile.partials + kv_head * tile.n_spans * n_partial,
                  n_partial);
  }
}

}  // namespace capax
