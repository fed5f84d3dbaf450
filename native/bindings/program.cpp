// Python's view of the page pool and of a recorded program.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sampling.h"
#include "kv/page_pool.h"
#include "program/attention.h"
#include "program/embed.h"
#include "program/gather.h"
#include "program/linear.h"
#include "program/program.h"
#include "program/rowwise.h"
#include "program/sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace capax {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Keep products of extents far below 2^63; no model comes near.
constexpr int64_t kMaxLayer = 65535;
constexpr int32_t kMaxHeads = 65536;

std::vector<float> to_vector(const std::optional<Vector<float>>& array) {
  if (!array) return {};
  return {array->data(), array->data() + array->shape(0)};
}

// A program together with what its operations borrow from Python.
struct RecordedProgram {
  explicit RecordedProgram(int n_threads) : program(n_threads) {}
  Program program;
  std::vector<LinearOperation*> linear;  // by operation index; nullptr for other kinds
  std::vector<std::pair<int64_t, KVLayout>> layers;  // of attention; the type comes with the step
  int64_t vocab_size = 0;                            // rows of the smallest embedding table
  int64_t n_positions = INT64_MAX;                   // rows of the shortest rotary table
  int64_t head_begin = 0;      // behind the last operation that reads the step's tokens
  int64_t sample_index = -1;   // of the operation that samples
  int64_t n_logits = 0;        // that it samples from
  int64_t last_n_tokens = 0;
  bool has_bidirectional = false;

  int add(std::unique_ptr<Operation> operation, LinearOperation* as_linear) {
    linear.push_back(as_linear);
    return program.add(std::move(operation));
  }
  void check_buffer(int buffer, int64_t width) const {
    if (buffer < 0 || buffer >= program.n_buffers()) throw nb::value_error("no such buffer");
    if (program.width(buffer) != width) throw nb::value_error("the buffer has another width");
  }
  // A buffer of this width with a row for each token.
  void check_token_buffer(int buffer, int64_t width) const {
    check_buffer(buffer, width);
    if (program.gathered(buffer)) throw nb::value_error("the buffer is gathered: it has no row for each token");
  }
  void check_same_rows(int a, int b) const {
    if (a < 0 || b < 0 || std::max(a, b) >= program.n_buffers()) throw nb::value_error("no such buffer");
    if (program.gathered(a) != program.gathered(b)) throw nb::value_error("one buffer is gathered, the other is not");
  }
};

// Refuse a page of sequence `i` that is outside the pool, free, or twice in its table.
void check_page(const PagePool& pool, int32_t page, int32_t i, std::vector<int32_t>& seen_by, const char* kind) {
  const auto refuse = [&](const std::string& problem) {
    throw std::invalid_argument(kind + std::to_string(page) + " of sequence " + std::to_string(i) + " " + problem);
  };
  if (page < 0 || page >= pool.capacity()) refuse("is outside the pool of " + std::to_string(pool.capacity()) + " pages");
  if (!pool.is_in_use(page)) refuse("is free; allocate it first");
  int32_t& seen = seen_by[static_cast<size_t>(page)];
  if (seen == i) refuse("is in its table twice");
  seen = i;
}

int64_t checked_range(const RecordedProgram& self, int64_t begin, int64_t end) {
  if (begin < 0 || end < begin || end > self.program.n_operations()) throw std::invalid_argument("operations " + std::to_string(begin) + " to " + std::to_string(end) + " of a program of " +
                                std::to_string(self.program.n_operations()));
  return end;
}

void check_logit_rows(const Step& step) {
  for (int64_t r = 0; r < step.n_logit_rows; ++r)
    if (step.logit_rows[r] < 0 || step.logit_rows[r] >= step.n_tokens)
      throw std::invalid_argument("logit row " + std::to_string(step.logit_rows[r]) + " is outside the step's " +
                                  std::to_string(step.n_tokens) + " tokens");
}

// The memory of a step's caches, and what is known of it so far.
struct Pools {
  Pools(PagePool* exact, PagePool* coded)
      : exact(exact), coded(coded), seen_exact(exact ? static_cast<size_t>(exact->capacity()) : 0, -1),
        seen_coded(coded ? static_cast<size_t>(coded->capacity()) : 0, -1) {}
  PagePool *exact, *coded;
  std::vector<int32_t> seen_exact, seen_coded;   // page -> last sequence
  std::vector<std::vector<int32_t>> own_tables;  // with passing pages
};

void check_layers(const RecordedProgram& self, const PagePool& pool, KVType type) {
  for (auto [layer, pages] : self.layers) {
    pages.type = type;
    if ((layer + 1) * layer_page_nbytes(pages) > pool.page_nbytes())
      throw nb::value_error("the pool's pages have no room for every layer");
  }
}

void check_codec(const RecordedProgram& self, const Codec& codec, const PagePool& pool, KVType type, int64_t lag) {
  check(type != KVType::int8, "exact pages of a coded cache are f32, f16 or bf16");
  check(!self.has_bidirectional, "codes are made of causal attention only");
  check(lag >= -1 && lag <= INT32_MAX, "lag " + std::to_string(lag) + " is not -1 or more");
  for (const auto& [layer, pages] : self.layers)
    check(layer < codec.n_layers() && pages.n_kv_heads == codec.n_kv_heads() && pages.k_dim == codec.k_dim() &&
              pages.v_dim == codec.v_dim(),
          "the codec is for " + std::to_string(codec.n_layers()) + " layers of " + std::to_string(codec.n_kv_heads()) +
              " heads of " + std::to_string(codec.k_dim()) + " and " + std::to_string(codec.v_dim()) +
              " channels; layer " + std::to_string(layer) + " is another");
  check(codec.page_nbytes() <= pool.page_nbytes(), "the pool's pages of " + std::to_string(pool.page_nbytes()) +
                                                       " bytes have no room for codes of " +
                                                       std::to_string(codec.page_nbytes()));
}

void check_length(const Vector<int32_t>& table, int64_t n_pages, int64_t n_tokens, int32_t sequence, const char* kind) {
  const int64_t n_given = static_cast<int64_t>(table.shape(0));
  check(n_given >= n_pages, std::string("the ") + kind + "table of sequence " + std::to_string(sequence) + " has " +
                                std::to_string(n_given) + " pages; its " + std::to_string(n_tokens) + " tokens need " +
                                std::to_string(n_pages));
}

// The page table of a sequence whose older blocks are codes. Blocks that begin and end in this step
// and that nobody reads exactly after it lie in passing pages; all others have pages of their own.
const int32_t* coded_table(const SequenceSlice& s, int32_t i, const Vector<int32_t>& table, CodedStep& coded, Pools& pools) {
  const int64_t n_block = coded.codec->block_tokens(), n_parts = n_block / kPageTokens;
  const int64_t n_tokens = s.position0 + s.token_end - s.token_begin;
  check(coded.lag >= 0 || (s.position0 % n_block == 0 && n_tokens % n_block == 0),
        "sequence " + std::to_string(i) + " has positions " + std::to_string(s.position0) + " to " +
            std::to_string(n_tokens) + " in this step; a cache without an exact window takes whole blocks of " +
            std::to_string(n_block) + " tokens at a time");
  std::vector<int32_t> own(static_cast<size_t>((n_tokens + kPageTokens - 1) / kPageTokens), INT32_MIN);
  const int64_t first = std::max<int64_t>(s.position0 / n_block - std::max<int64_t>(coded.lag, 0), 0);
  const int64_t kept = n_tokens / n_block - std::max<int64_t>(coded.lag, 0);
  for (int64_t page = first * n_parts; page < static_cast<int64_t>(own.size()); ++page) {
    const int64_t block = page / n_parts;
    if (block * n_block >= s.position0 && block < kept) {
      own[static_cast<size_t>(page)] = static_cast<int32_t>(-1 - coded.n_passing++);
    } else {
      check_page(*pools.exact, table.data()[page], i, pools.seen_exact, "page ");
      own[static_cast<size_t>(page)] = table.data()[page];
    }
  }
  pools.own_tables.push_back(std::move(own));
  return pools.own_tables.back().data();
}

SequenceSlice sequence_of(const int32_t* bounds, int32_t i, const Vector<int32_t>* table, const Vector<int32_t>* codes,
                          CodedStep& coded, Pools& pools) {
  SequenceSlice s{bounds[0], bounds[1], bounds[2], nullptr};
  if (!table) return s;
  const int64_t n_tokens = s.position0 + s.token_end - s.token_begin, n_pages = (n_tokens + kPageTokens - 1) / kPageTokens;
  check_length(*table, n_pages, n_tokens, i, "page ");
  if (coded.codec) {
    const int64_t n_blocks = n_tokens / coded.codec->block_tokens();
    check_length(*codes, n_blocks, n_tokens, i, "code page ");
    for (int64_t b = 0; b < n_blocks; ++b) check_page(*pools.coded, codes->data()[b], i, pools.seen_coded, "code page ");
    s.code_table = codes->data();
    s.page_table = coded_table(s, i, *table, coded, pools);
  } else {
    for (int64_t p = 0; p < n_pages; ++p) check_page(*pools.exact, table->data()[p], i, pools.seen_exact, "page ");
    s.page_table = table->data();
  }
  return s;
}

nb::list run(RecordedProgram& self, int64_t begin, int64_t end, Vector<int32_t> tokens, Matrix<int32_t> bounds,
         const std::vector<Vector<int32_t>>& page_tables, PagePool* pool, const KVLayout* layout,
         Vector<int32_t> logit_rows, const std::vector<Sampler*>& samplers, const Codec* codec, PagePool* code_pool,
         const std::vector<Vector<int32_t>>& code_tables, int64_t lag) {
  checked_range(self, begin, end);
  Step step;
  step.tokens = tokens.data();
  step.n_tokens = static_cast<int64_t>(tokens.shape(0));
  step.logit_rows = logit_rows.data();
  step.n_logit_rows = static_cast<int64_t>(logit_rows.shape(0));
  for (int64_t t = 0; t < step.n_tokens; ++t)
    if (step.tokens[t] < 0 || step.tokens[t] >= self.vocab_size)
      throw std::invalid_argument("token id " + std::to_string(step.tokens[t]) + " is outside the vocabulary of " +
                                  std::to_string(self.vocab_size));
  check_logit_rows(step);
  if (bounds.shape(1) != 3) throw nb::value_error("bounds are rows of (begin, end, position)");
  if (pool && (!layout || page_tables.size() != bounds.shape(0))) throw nb::value_error("one page table for each sequence");
  if (pool) {
    step.pages = pool->base();
    step.page_stride = pool->page_stride();
    step.kv_type = layout->type;
    check_layers(self, *pool, step.kv_type);
  }
  if (codec) {
    if (!pool || !code_pool || pool == code_pool || code_tables.size() != bounds.shape(0))
      throw nb::value_error("a coded cache needs exact pages, code pages of another pool, and a table of them for each sequence");
    check_codec(self, *codec, *code_pool, step.kv_type, lag);
    step.codes = {codec, code_pool->base(), code_pool->page_stride(), lag, 0};
  }
  int64_t next = 0;
  Pools pools(pool, codec ? code_pool : nullptr);
  for (size_t i = 0; i < bounds.shape(0); ++i) {
    const int32_t* row = bounds.data() + 3 * i;
    const int64_t n = int64_t{row[1]} - row[0];
    if (row[0] != next || n <= 0 || row[1] > step.n_tokens || row[2] < 0 || row[2] + n > self.n_positions)
      throw std::invalid_argument(
          "sequence " + std::to_string(i) + " has rows " + std::to_string(row[0]) + " to " + std::to_string(row[1]) +
          " from position " + std::to_string(row[2]) + "; its rows begin at " + std::to_string(next) + " of " +
          std::to_string(step.n_tokens) + " and its positions end below " + std::to_string(self.n_positions));
    next = row[1];
    step.sequences.push_back(sequence_of(row, static_cast<int32_t>(i), pool ? &page_tables[i] : nullptr,
                                         codec ? &code_tables[i] : nullptr, step.codes, pools));
  }
  if (next != step.n_tokens) throw nb::value_error("sequences do not cover the step's tokens");
  if (pool && !codec) step.shared = shared_prefixes(step.sequences);
  std::vector<SampleResult> results;
  if (!samplers.empty()) {
    if (static_cast<int64_t>(samplers.size()) != step.n_logit_rows) throw nb::value_error("one sampler for each logit row");
    if (self.sample_index < begin || self.sample_index >= end) throw nb::value_error("nothing samples in these operations");
    for (const Sampler* sampler : samplers) {
      if (!sampler) throw nb::value_error("a sampler is None");
      check_sampler(*sampler, self.n_logits);
      results.push_back(empty_result(*sampler));
    }
    step.samplers = samplers.data();
    step.results = results.data();
  }
  self.last_n_tokens = step.n_tokens;
  {
    NativeSection native;
    self.program.run(step, begin, end);
  }
  nb::list sampled;
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].status == SampleStatus::ok) samplers[i]->accept(results[i].chosen.token);
    sampled.append(to_tuple(results[i]));
  }
  return sampled;
}

void run_head(RecordedProgram& self, int64_t begin, Vector<int32_t> logit_rows, std::optional<int64_t> last) {
  const int64_t end = checked_range(self, begin, last.value_or(self.program.n_operations()));
  if (begin < self.head_begin) throw nb::value_error("the head does not read tokens");
  Step step;
  step.n_tokens = self.last_n_tokens;
  step.logit_rows = logit_rows.data();
  step.n_logit_rows = static_cast<int64_t>(logit_rows.shape(0));
  check_logit_rows(step);
  NativeSection native;
  self.program.run(step, begin, end);
}

int add_linear(RecordedProgram& self, int input, const std::optional<Vector<float>>& norm, float eps, int up,
               bool accumulate) {
  if (input < 0 || input >= self.program.n_buffers()) throw nb::value_error("no such buffer");
  const int64_t n_in = self.program.width(input);
  if (up >= 0) self.check_same_rows(up, input), self.check_buffer(up, n_in);
  auto operation =
      std::make_unique<LinearOperation>(self.program, input, n_in, to_vector(norm), eps, up, accumulate);
  LinearOperation* borrowed = operation.get();
  return self.add(std::move(operation), borrowed);
}

void add_linear_output(RecordedProgram& self, int operation, const Weight& weight,
                       const std::optional<Vector<float>>& bias, int buffer) {
  if (operation < 0 || operation >= static_cast<int>(self.linear.size()) || !self.linear[operation])
    throw nb::value_error("no such linear operation");
  if (self.program.max_tokens() > 0) throw nb::value_error("outputs come before reserve");
  self.check_buffer(buffer, weight.n_out());
  self.check_same_rows(buffer, self.linear[operation]->input());
  self.linear[operation]->add_output({&weight, to_vector(bias), buffer});
}

int add_attention(RecordedProgram& self, int64_t layer, int q, int k, int v, int out, int32_t n_heads,
                  int32_t n_kv_heads, int32_t head_dim, Matrix<float> cos, Matrix<float> sin, bool interleaved,
                  const std::optional<Vector<float>>& q_norm, const std::optional<Vector<float>>& k_norm, float norm_eps,
                  float scale, int32_t window, bool causal) {
  if (layer < 0 || layer > kMaxLayer || n_kv_heads <= 0 || n_heads <= 0 || n_heads > kMaxHeads ||
      n_heads % n_kv_heads || head_dim <= 0 || head_dim % 2 || head_dim > kMaxHeadDim || window < 0)
    throw std::invalid_argument(
        "attention of layer " + std::to_string(layer) + " (0 to 65535) has n_heads " + std::to_string(n_heads) +
        " (1 to 65536, a multiple of n_kv_heads), n_kv_heads " + std::to_string(n_kv_heads) + ", head_dim " +
        std::to_string(head_dim) + " (even, 2 to 1024) and window " + std::to_string(window) + " (0 or more)");
  for (const int buffer : {q, out}) self.check_token_buffer(buffer, n_heads * head_dim);
  for (const int buffer : {k, v}) self.check_token_buffer(buffer, n_kv_heads * head_dim);
  if (q == k || q == v || k == v || out == q || out == k || out == v)
    throw nb::value_error("q, k, v and the output need a buffer each");
  for (const Matrix<float>* table : {&cos, &sin})
    if (static_cast<int32_t>(table->shape(1)) != head_dim / 2 || table->shape(0) != cos.shape(0))
      throw nb::value_error("rotary tables are [n_positions, head_dim / 2]");
  AttentionOperation::Options options{
      layer, q, k, v, out, n_heads, n_kv_heads, head_dim, cos.data(), sin.data(),
      static_cast<int64_t>(cos.shape(0)), interleaved ? RopeStyle::interleaved : RopeStyle::half,
      to_vector(q_norm), to_vector(k_norm), norm_eps, scale, window, causal};
  for (const std::vector<float>* gain : {&options.q_norm, &options.k_norm})
    if (!gain->empty() && static_cast<int32_t>(gain->size()) != head_dim)
      throw std::invalid_argument("a QK norm gain has " + std::to_string(gain->size()) + " values; head_dim is " +
                                  std::to_string(head_dim));
  const int operation = self.add(std::make_unique<AttentionOperation>(self.program, std::move(options)), nullptr);
  self.has_bidirectional = self.has_bidirectional || !causal;
  self.layers.push_back({layer, {KVType::f32, n_kv_heads, head_dim, head_dim}});
  self.n_positions = std::min(self.n_positions, static_cast<int64_t>(cos.shape(0)));
  return operation;
}

int add_positions(RecordedProgram& self, int x, Matrix<float> table) {
  self.check_token_buffer(x, static_cast<int64_t>(table.shape(1)));
  self.n_positions = std::min(self.n_positions, static_cast<int64_t>(table.shape(0)));
  return self.add(std::make_unique<PositionOperation>(self.program, x, table.data()), nullptr);
}

int add_layer_norm(RecordedProgram& self, int x, const Vector<float>& weight, const Vector<float>& bias, float eps) {
  for (const Vector<float>* row : {&weight, &bias}) self.check_token_buffer(x, static_cast<int64_t>(row->shape(0)));
  return self.add(
      std::make_unique<LayerNormOperation>(self.program, x, to_vector(weight), to_vector(bias), eps), nullptr);
}

int add_gelu(RecordedProgram& self, int x) {
  if (x < 0 || x >= self.program.n_buffers()) throw nb::value_error("no such buffer");
  self.check_token_buffer(x, self.program.width(x));
  return self.add(std::make_unique<GeluOperation>(self.program, x), nullptr);
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<PagePool>(m, "PagePool")
      .def(nb::init<int64_t, int64_t>(), "page_nbytes"_a, "capacity"_a)
      .def("allocate", &PagePool::allocate, "A zeroed page with one reference; -1 when the pool is full.")
      .def("retain", &PagePool::retain, "page"_a)
      .def("release", &PagePool::release, "page"_a)
      .def("copy", &PagePool::copy, "page"_a, "A private copy of a page; -1 when the pool is full.")
      .def("references", &PagePool::references, "page"_a)
      .def("trim", &PagePool::trim, "Give the memory of free pages back to the system.")
      .def("check_integrity", &PagePool::check_integrity)
      .def(
          "read",
          [](const PagePool& self, int32_t page) {
            self.references(page);  // throws unless in use
            return nb::bytes(self.base() + page * self.page_stride(), static_cast<size_t>(self.page_nbytes()));
          },
          "page"_a)
      .def(
          "write",
          [](PagePool& self, int32_t page, nb::bytes content) {
            self.references(page);
            if (static_cast<int64_t>(content.size()) != self.page_nbytes())
              throw std::invalid_argument("the content has " + std::to_string(content.size()) + " bytes; a page has " +
                                          std::to_string(self.page_nbytes()));
            memcpy(self.base() + page * self.page_stride(), content.c_str(), content.size());
          },
          "page"_a, "content"_a)
      .def_prop_ro(
          "memory",
          [](nb::handle_t<PagePool> handle) {
            PagePool& self = nb::cast<PagePool&>(handle);
            return nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>(
                self.base(), {static_cast<size_t>(self.capacity()), static_cast<size_t>(self.page_stride())}, handle);
          },
          "All pages, uint8 [capacity, page_stride]: a view that does not touch them.")
      .def_prop_ro("capacity", &PagePool::capacity)
      .def_prop_ro("n_in_use", &PagePool::n_in_use)
      .def_prop_ro("page_nbytes", &PagePool::page_nbytes)
      .def_prop_ro("resident_nbytes", &PagePool::resident_nbytes);

  nb::class_<Pace>(m, "Pace", "How many threads of a team to use; see parallel/pace.h. Times are nanoseconds.")
      .def(nb::init<int>(), "n_threads"_a)
      .def("next", &Pace::next, "now_ns"_a, "Threads for a step that begins now.")
      .def("record", &Pace::record, "now_ns"_a, "step_ns"_a, "waited_ns"_a, "That step has ended now.");
  nb::class_<RecordedProgram>(m, "Program")
      .def(nb::init<int>(), "n_threads"_a)
      .def(
          "buffer", [](RecordedProgram& self, int64_t width, bool gathered) { return self.program.buffer(width, gathered); },
          "width"_a, "gathered"_a)
      .def(
          "embed",
          [](RecordedProgram& self, const Weight& table, int out) {
            self.check_token_buffer(out, table.n_in());
            const int operation = self.add(std::make_unique<EmbedOperation>(self.program, &table, out), nullptr);
            self.head_begin = operation + 1;
            self.vocab_size = self.vocab_size ? std::min(self.vocab_size, table.n_out()) : table.n_out();
            return operation;
          },
          "table"_a, "out"_a, nb::keep_alive<1, 2>())
      .def("linear", &add_linear, "x"_a, "norm"_a.none(), "eps"_a, "up"_a, "accumulate"_a)
      .def("linear_output", &add_linear_output, "operation"_a, "weight"_a, "bias"_a.none(), "buffer"_a,
           nb::keep_alive<1, 3>())
      .def("attention", &add_attention, "layer"_a, "q"_a, "k"_a, "v"_a, "out"_a, "n_heads"_a, "n_kv_heads"_a,
           "head_dim"_a, "cos"_a.noconvert(), "sin"_a.noconvert(), "interleaved"_a, "q_norm"_a.none(), "k_norm"_a.none(), "norm_eps"_a,
           "scale"_a, "window"_a, "causal"_a, nb::keep_alive<1, 10>(), nb::keep_alive<1, 11>())
      .def("positions", &add_positions, "x"_a, "table"_a.noconvert(), nb::keep_alive<1, 3>(),
           "Record x[t] += table[position of t]; table: float32 [n_positions, width of x].")
      .def("layer_norm", &add_layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "Record a layer norm in place.")
      .def("gelu", &add_gelu, "x"_a, "Record GELU in place.")
      .def(
          "gather",
          [](RecordedProgram& self, int from, int to) {
            if (from < 0 || from >= self.program.n_buffers()) throw nb::value_error("no such buffer");
            self.check_buffer(to, self.program.width(from));
            if (self.program.gathered(from) || !self.program.gathered(to))
              throw nb::value_error("rows are gathered from a plain buffer into a gathered one");
            return self.add(std::make_unique<GatherOperation>(self.program, from, to), nullptr);
          },
          "from_"_a, "to"_a)
      .def(
          "sample",
          [](RecordedProgram& self, int logits) {
            if (logits < 0 || logits >= self.program.n_buffers() || !self.program.gathered(logits))
              throw nb::value_error("no such buffer of logits");
            if (self.sample_index >= 0) throw nb::value_error("a program samples once");
            const int operation = self.add(std::make_unique<SampleOperation>(self.program, logits), nullptr);
            self.sample_index = operation;
            self.n_logits = self.program.width(logits);
            return operation;
          },
          "logits"_a)
      .def(
          "reserve",
          [](RecordedProgram& self, int64_t n_tokens, int64_t n_logit_rows) {
            self.program.reserve(n_tokens, n_logit_rows);
          },
          "n_tokens"_a, "n_logit_rows"_a,
          "Make room for so many rows in a step; once, when everything is recorded and before anything runs.")
      .def("run", &run, "begin"_a, "end"_a, "tokens"_a, "bounds"_a, "page_tables"_a, "pool"_a.none(),
           "layout"_a.none(), "logit_rows"_a, "samplers"_a, "codec"_a = nb::none(), "code_pool"_a = nb::none(),
           "code_tables"_a = std::vector<Vector<int32_t>>{}, "lag"_a = 0,
           "Run operations [begin, end) over a step; bounds: int32 [n_sequences, 3] of first row, end row, position. "
           "samplers: one for each logit row, or none; what they chose is returned as `Sampler.sample` does. "
           "codec: older blocks are read from codes, whose pages are of code_pool; see kv/codec.h.")
      .def("run_head", &run_head, "begin"_a, "logit_rows"_a, "end"_a = nb::none(),
           "Run operations from `begin` on, up to `end` if given, for rows of the step that ran last.")
      .def(
          "rows",
          [](nb::handle_t<RecordedProgram> handle, int buffer) {
            RecordedProgram& self = nb::cast<RecordedProgram&>(handle);
            if (buffer < 0 || buffer >= self.program.n_buffers()) throw nb::value_error("no such buffer");
            const Program& p = self.program;
            const size_t n = static_cast<size_t>(p.gathered(buffer) ? p.max_logit_rows() : p.max_tokens());
            return nb::ndarray<nb::numpy, float, nb::ndim<2>>(
                self.program.rows(buffer), {n, static_cast<size_t>(p.width(buffer))}, handle);
          },
          "buffer"_a, "The rows of a buffer, float32 [rows, width]: a view kept alive by the program.")
      .def_prop_ro("n_operations", [](const RecordedProgram& self) { return self.program.n_operations(); })
      .def_prop_ro("n_threads", [](const RecordedProgram& self) { return self.program.n_threads(); })
      .def_prop_ro("n_active_threads", [](const RecordedProgram& self) { return self.program.n_active(); },
                   "Threads that the last step used: fewer while other processes keep the cores busy.")
      .def("fix_threads", [](RecordedProgram& self, int n_threads) { self.program.fix_threads(n_threads); }, "n_threads"_a,
           "Use so many threads whatever else runs; 0: as many as do not stand waiting for each other.")
      .def_prop_ro("scratch_nbytes", [](const RecordedProgram& self) { return self.program.scratch_nbytes(); });
}

}  // namespace capax
