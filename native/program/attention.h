// One layer's attention over the paged cache: norm and rotate q and k, append, attend.
//
// Phase 1, items (sequence, block of tokens, KV head): QK norm, rotary embedding, append.
// A coded cache then encodes, items (sequence, block, KV head): the blocks that have become due.
// Phase 2, a few tokens: items (sequence, token, KV head, span of 512 keys) and a merge;
//          many tokens: items (sequence, KV head, tile of tokens);
//          decoding sequences that share pages: items (group, KV head, span) for the spans with
//          shared pages. All give the same bits.
#pragma once

#include <vector>

#include "program/program.h"

namespace capax {

class AttentionOperation : public Operation {
 public:
  struct Options {
    int64_t layer;
    int q, k, v, out;  // buffers
    int32_t n_heads, n_kv_heads, head_dim;
    const float* cos;  // [n_positions, head_dim / 2], kept alive by the caller
    const float* sin;
    int64_t n_positions;
    RopeStyle style;
    std::vector<float> q_norm, k_norm;  // [head_dim] or empty
    float norm_eps;
    float scale;
    int32_t window;
    bool causal;
  };

  AttentionOperation(Program& program, Options options) : program_(program), o_(std::move(options)) {}

  void prepare(const Step& step, int n_threads) override;
  void run(Context& context, int rank) override;

 private:
  struct Group {  // sequences of one new token whose first pages are attended together
    std::vector<Attend> members;
    std::vector<int32_t> tiles;  // of the members
    int64_t n_pages;             // shared
    int64_t n_spans;             // that contain a shared page: spans 0 .. n_spans - 1
  };
  struct Tile {  // tokens of one sequence that one item attends for
    int32_t sequence;
    int64_t token_begin, token_end;  // within the sequence
    int64_t n_spans;                 // 0: all spans at once, by `attend`
    int64_t partials;                // offset in floats of the first partial, if split in spans
    int64_t n_grouped;               // of its spans, that its group computes
  };
  struct Encoding {  // one KV head of a block that is due
    int32_t sequence;
    int32_t kv_head;
    int64_t block;
  };

  Attend attend_for(const Step& step, const SequenceSlice& sequence) const;
  Attend attend_for(const Step& step, const Tile& tile) const;
  CodedView codes_of(const Step& step, const SequenceSlice& sequence) const;
  void share_tiles(const Step& step, int n_threads);
  void store(Context& context, const SequenceSlice& sequence, int64_t begin, int64_t end, int32_t kv_head) const;
  int64_t plan_tables(const Step& step, int64_t begin);
  void fill_tables(Context& context, const Tile& block, int32_t kv_head) const;
  void find_encodings(const Step& step, int32_t sequence);
  void encode(Context& context, const Encoding& item, float* scratch) const;

  Program& program_;
  Options o_;
  KVLayout layout_{};
  std::vector<Tile> blocks_;          // phase 1
  std::vector<Encoding> encodings_;   // between them
  std::vector<Tile> tiles_;           // phase 2
  std::vector<Group> groups_;         // phase 2, their items come first
  std::vector<int64_t> first_item_;   // of each group, then of each tile, then the total
  std::vector<std::vector<int64_t>> owned_;  // items of each rank, if they are shared out by rows
  Shares shares_;
  bool has_split_ = false;
  int64_t rank_floats_ = 0;  // operation scratch: [per rank: kernel scratch | partials | codec's tables]
  int64_t ld_table_ = 0;     // floats of the codec's table of one query row
  int64_t passing_ = 0;      // offset in floats of the passing pages, which come last
  std::vector<int64_t> tables_of_;  // of each sequence: offset in floats of its tables, or -1

  void attend_group(Context& context, const Group& group, int64_t item, float* scratch, float* partials) const;
  void attend_tile(Context& context, const Tile& tile, int64_t item, float* scratch, float* partials) const;

  int32_t n_group() const { return o_.n_heads / o_.n_kv_heads; }
};

}  // namespace capax
