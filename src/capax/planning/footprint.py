"""How many bytes a run holds, component by component.

Every function is exact or an upper bound: a plan that says it fits must fit. What the
engine reports of itself (`LLM.measured_memory`) has the same component names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace

from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv import PAGE_TOKENS, kv_method
from capax.planning.sizes import KIB, MIB
from capax.weights import packed_nbytes

# Resident bytes of a process that has imported what a run needs and loaded no model; the
# second figure is per vocabulary entry, for the tokenizer and the texts in the file's header.
# Measured 2026-11-22 with Python 3.11, NumPy 2.4, tokenizers 0.22: 36 MiB, and 620 B per
# entry of a byte-level BPE of 49,152.
BASE_NBYTES = 40 * MIB
TOKENIZER_NBYTES_PER_ENTRY = 720

_GROUP_ROWS = 16
_HUGE_PAGE = 2 * MIB
_STREAM_READ_NBYTES = 256 * KIB
_QUERY_ROWS, _SPAN_TOKENS, _SPLIT_TOKENS = 48, 512, 4
_SAMPLE_BLOCK = 128
_ALIGNMENT_NBYTES = 16 * KIB  # buffers begin at cache lines
_TOKEN_TILE = 16  # tokens whose int8 forms are interleaved


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes held by a run, by what they are for.

    `weights`: packed matrices, norms, biases; `streaming`: buffers of weights that stay in
    the file; `kv`: the KV cache when full; `scratch`: activations, logits, rotary tables and
    the threads' own buffers; `tokenizer`: vocabulary and merges; `base`: the interpreter.
    """

    weights: int
    streaming: int
    kv: int
    scratch: int
    tokenizer: int
    base: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Shape:
    """The choices that decide a footprint besides the model itself."""

    context_len: int
    kv: str  # a KV method
    threads: int
    prefill_chunk: int
    n_sequences: int
    logit_rows: int
    streamed: frozenset[str] = frozenset()


def footprint(model: ModelFile, shape: Shape) -> Footprint:
    """Return what `model` holds when run in this shape."""
    return Footprint(
        weights=weights_nbytes(model, shape.streamed),
        streaming=streaming_nbytes(model, shape.streamed, shape.threads),
        kv=kv_nbytes(model.config, shape),
        scratch=scratch_nbytes(model, shape),
        tokenizer=model.config.vocab_size * TOKENIZER_NBYTES_PER_ENTRY,
        base=BASE_NBYTES,
    )


# --- weights -------------------------------------------------------------------------


def matrix_names(model: ModelFile) -> list[str]:
    """Return the names of the model's matrices, in file order."""
    return [name for name, tensor in model.tensors.items() if len(tensor.shape) == 2]


def packed_matrix_nbytes(model: ModelFile, name: str) -> int:
    """Return the packed bytes of one matrix of the model."""
    return packed_nbytes(model.tensors[name])


def weights_nbytes(model: ModelFile, streamed: Collection[str] = ()) -> int:
    """Return the bytes of all weights in memory: matrices not in `streamed`, vectors in float32.

    Vectors count twice: once by name and once inside the operations that use them.
    """
    matrices = sum(packed_matrix_nbytes(model, n) for n in matrix_names(model) if n not in streamed)
    vectors = sum(4 * t.shape[0] for t in model.tensors.values() if len(t.shape) == 1)
    return _round_up(matrices, _HUGE_PAGE) + 2 * vectors


def streaming_nbytes(model: ModelFile, streamed: Collection[str], threads: int) -> int:
    """Return the bytes of the threads' buffers for reading and packing streamed matrices."""
    return threads * max((stream_buffer_nbytes(model, name) for name in streamed), default=0)


def stream_buffer_nbytes(model: ModelFile, name: str) -> int:
    """Return one thread's buffer for one streamed matrix: some raw groups and their packed form."""
    tensor = model.tensors[name]
    n_out, _ = tensor.shape
    raw_group = _GROUP_ROWS * (tensor.nbytes // n_out)
    n_groups = -(-n_out // _GROUP_ROWS)
    groups = min(max(_STREAM_READ_NBYTES // raw_group, 1), n_groups)
    return _round_up(groups * raw_group, 64) + groups * (
        packed_matrix_nbytes(model, name) // n_groups
    )


# --- KV cache ------------------------------------------------------------------------


def kv_nbytes(config: ModelConfig, shape: Shape) -> int:
    """Return the bytes of the KV cache when it holds every sequence's whole context.

    Whatever runs at once has room for what its method keeps of a sequence besides pages.
    """
    kv = kv_method(shape.kv).footprint(config)
    return kv.nbytes(shape.context_len, shape.n_sequences, max(shape.n_sequences, shape.logit_rows))


# --- scratch -------------------------------------------------------------------------


def scratch_nbytes(model: ModelFile, shape: Shape) -> int:
    """Return the bytes of activations, logits, rotary tables and what operations work in.

    An encoder's learned positions are tables as the rotary ones. Activations are float32 rows
    for one chunk, and behind the last attention for the rows
    whose logits are wanted. Operations run one after another and share one memory, as large
    as the largest of them needs.
    """
    c = model.config
    shape = replace(shape, prefill_chunk=c.n_rows(shape.prefill_chunk))
    widths = c.d_model + 2 * c.d_q + 2 * c.d_kv + 2 * c.d_ffn
    activations = 4 * shape.prefill_chunk * widths
    logits = 4 * shape.logit_rows * (c.vocab_size + c.d_model + c.d_q + 2 * c.d_ffn)
    rotary = 4 * c.n_positions(shape.context_len) * c.head_dim
    positions = 4 * c.context_len * c.d_model if c.encoder else 0
    operations = max(
        _linear_nbytes(model, shape), _attention_nbytes(c, shape), _sampling_nbytes(c, shape)
    )
    method = kv_method(shape.kv).footprint(c)
    kv = method.scratch + shape.prefill_chunk * method.scratch_token
    return activations + logits + rotary + positions + operations + kv + _ALIGNMENT_NBYTES


def _linear_nbytes(model: ModelFile, shape: Shape) -> int:
    """The widest input as int8 with scales and sums, or as floats, and a tile per thread.

    Rows whose logits are wanted stand twice, with a tile more for each of the two.
    """
    c = model.config
    widest = max(c.d_model, c.d_q, c.d_ffn)
    has_floats = any(model.tensors[name].encoding.is_float for name in matrix_names(model))
    rows = max(shape.prefill_chunk, 2 * shape.logit_rows)
    row = -(-13 * widest // 8) + (4 * widest if has_floats else 0)
    # A step of two tokens is prepared by each thread; sums are of 16 groups of 16 outputs.
    own = 5 * row + 3 * _TOKEN_TILE * 4 * widest + 2 * shape.logit_rows * 16 * _GROUP_ROWS * 4
    return rows * row + shape.threads * own


def _attention_nbytes(config: ModelConfig, shape: Shape) -> int:
    """Scores and partial results of 48 query rows per thread; of a few tokens also per span.

    `native/attention/attention.h` draws both: spans of 512 keys, partials of 16 + head_dim.
    """
    n_group = config.n_heads // config.n_kv_heads
    v_stride = _round_up(config.head_dim, 16)
    partial = 16 + v_stride
    rows = max(1, _QUERY_ROWS // n_group) * n_group
    page = PAGE_TOKENS * (config.head_dim + v_stride)
    per_thread = rows * (_SPAN_TOKENS + 2 * partial) + page
    spans = shape.context_len // _SPAN_TOKENS + 1
    # Decoding sequences have one new token; the others share the room for a few tokens each.
    split = (
        (shape.logit_rows + shape.n_sequences * _SPLIT_TOKENS) * config.n_heads * spans * partial
    )
    return 4 * (shape.threads * per_thread + split)


def _sampling_nbytes(config: ModelConfig, shape: Shape) -> int:
    """Weights, an order and block sums of a row of logits, for each row sampled at a time."""
    rows = min(shape.threads, shape.logit_rows)
    blocks = -(-config.vocab_size // _SAMPLE_BLOCK)
    return rows * 4 * _round_up(3 * config.vocab_size + 4 * blocks + _SAMPLE_BLOCK, 16)


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to
