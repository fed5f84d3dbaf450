"""A model ready to run: its weights, its recorded program, and `forward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import CapacityError, FileFormatError
from capax.files.config import ModelConfig
from capax.kv import (
    AttentionInput,
    CodedKVCache,
    CodedStore,
    InsertingCache,
    KVCache,
    PagedKVCache,
    PagePool,
    Rotary,
)
from capax.models import llama
from capax.models.program import Attention, Norm, ProgramBuilder
from capax.models.rope import rotary_tables
from capax.models.tensors import ModelTensors

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# One entry per architecture: the function that records its forward pass.
FAMILIES: dict[str, Callable[[ProgramBuilder, ModelTensors], None]] = {
    "llama": llama.build,
    "mistral": llama.build,
    "qwen2": llama.build,
    "qwen3": llama.build,
}


class SequenceSlice(NamedTuple):
    """Rows `begin` .. `end` - 1 of a step are the next tokens of the sequence of `cache`."""

    cache: KVCache
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Step:
    """The work of one forward pass: a ragged batch without padding.

    `tokens`: int32 [n_tokens], the slices one after another; `logit_rows`: int32 [n], the
    rows whose logits are wanted.
    """

    tokens: Ints
    sequences: Sequence[SequenceSlice]
    logit_rows: Ints


class Model:
    """Runs steps over sequences whose caches may be of any kind.

    `max_tokens` and `max_logit_rows` bound a step; scratch memory is taken for them here.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: ModelTensors,
        *,
        context_len: int,
        max_tokens: int,
        max_logit_rows: int,
        n_threads: int,
    ) -> None:
        build = FAMILIES.get(config.architecture)
        if build is None:
            raise FileFormatError(
                f"architecture {config.architecture!r} is not supported; "
                f"supported are {', '.join(sorted(FAMILIES))}"
            )
        self.config = config
        self.context_len = context_len
        self.max_tokens = max_tokens
        self.max_logit_rows = max_logit_rows
        self.native = _native.Program(n_threads)
        self._tensors = tensors
        tables = rotary_tables(config, config.n_positions(context_len))
        self._program = ProgramBuilder(config, tables, self.native)
        self._row_of: Ints | None = None  # of the last step's tokens, if others stand between
        build(self._program, tensors)
        self.native.reserve(config.n_rows(max_tokens), max_logit_rows)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of weights held in memory."""
        return self._tensors.nbytes

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of activations, logits and tables held in memory."""
        tables = self._program.rotary
        return self.native.scratch_nbytes + tables.cos.nbytes + tables.sin.nbytes

    @property
    def logits(self) -> Floats:
        """The logits of the last step's rows: [max_logit_rows, vocab_size], a view."""
        return self.native.rows(self._program.logits)

    def forward(self, step: Step) -> Floats:
        """Run the step; returns the logits of its logit rows, a view valid until the next one.

        Each cache must have room (`reserve`) and is advanced. Raises FileFormatError if a
        streamed weight can no longer be read; the caches are unchanged then.
        """
        self.sample(step, [])
        return self.logits[: len(step.logit_rows)]

    def sample(self, step: Step, samplers: Sequence[_native.Sampler]) -> list[_native.SampleResult]:
        """Run the step and let one sampler for each logit row choose its next token.

        With paged caches this is one native call. Raises as `forward`.
        """
        store = _common_store(step.sequences)
        if store is None:
            self.run_body(step)
            return self._sample_rows(step, samplers)
        end = self.native.n_operations if len(step.logit_rows) else self._program.head
        sampled = self._run(step, 0, end, store, samplers)
        self._advance(step)
        return sampled

    def sample_scoring(
        self,
        step: Step,
        samplers: Sequence[_native.Sampler],
        rows: Ints,
        visit: Callable[[int, Floats], None],
    ) -> list[_native.SampleResult]:
        """Like `sample`, and show the logits of further rows: visit(index of the first, logits).

        They are shown in order, as many at a time as there is room for; views, valid during the
        call.
        """
        store = _common_store(step.sequences)
        if store is None:
            self.run_body(step)
        else:
            self._row_of = None
            self._run(step, 0, self._program.head, store)
        for begin in range(0, len(rows), self.max_logit_rows):
            visit(begin, self.run_head(rows[begin : begin + self.max_logit_rows]))
        if store is None:
            return self._sample_rows(step, samplers)
        sampled = []
        if len(step.logit_rows):
            sampled = self._run(step, self._program.head, self.native.n_operations, store, samplers)
        self._advance(step)
        return sampled

    def _sample_rows(
        self, step: Step, samplers: Sequence[_native.Sampler]
    ) -> list[_native.SampleResult]:
        logits = self.run_head(step.logit_rows)
        return [s.sample(row) for s, row in zip(samplers, logits, strict=False)]

    def run_body(self, step: Step) -> None:
        """Run everything before the head; `run_head` may follow for any rows."""
        self._row_of = None
        store = _common_store(step.sequences)
        if store is not None:
            self._run(step, 0, self._program.head, store)
        else:
            step, positions = self._inserted(step)
            begin = 0
            for attention in self._program.attentions:
                self._run(step, begin, attention.operation, None)
                for s, at in zip(step.sequences, positions, strict=True):
                    self._attend(attention, s, at)
                begin = attention.operation + 1
            self._run(step, begin, self._program.head, None)
        self._advance(step)

    def run_head(self, logit_rows: Ints) -> Floats:
        """Return the logits of rows of the last body: [len(logit_rows), vocab_size], a view."""
        self._run_head(logit_rows, None)
        return self.logits[: len(logit_rows)]

    def run_hidden(self, rows: Ints) -> Floats:
        """Return the final hidden states of rows of the last body: [len(rows), d_model], a copy.

        They are what the output matrix sees, after the last norm.
        """
        program = self._program
        assert program.output_norm is not None  # `output` was recorded
        self._run_head(rows, program.output_operation)
        hidden = self.native.rows(program.hidden)[: len(rows)]
        return _native.rms_norm(hidden, program.output_norm.gain, program.output_norm.eps)

    def _run_head(self, rows: Ints, end: int | None) -> None:
        if not len(rows):
            return
        if self._row_of is not None:
            rows = self._row_of[rows]
        try:
            self.native.run_head(self._program.head, rows, end)
        except _native.WeightReadError as e:
            raise FileFormatError(str(e)) from e

    def _advance(self, step: Step) -> None:
        for s in step.sequences:
            s.cache.advance(s.end - s.begin)

    def _run(
        self,
        step: Step,
        begin: int,
        end: int,
        store: PagePool | CodedStore | None,
        samplers: Sequence[_native.Sampler] = (),
    ) -> list[_native.SampleResult]:
        n = len(step.sequences)
        bounds = np.empty((n, 3), np.int32)  # first row, end row, first position
        for i, s in enumerate(step.sequences):
            bounds[i] = s.begin, s.end, s.cache.n_tokens
        arguments = (begin, end, step.tokens, bounds)
        outputs = (step.logit_rows, list(samplers))
        try:
            if isinstance(store, CodedStore):
                tables = [s.cache.tables(s.end - s.begin) for s in step.sequences]  # type: ignore[attr-defined]  # checked by _common_store
                exact, codes = [t[0] for t in tables], [t[1] for t in tables]
                pool = store.exact
                return self.native.run(
                    *arguments, exact, pool.native, pool.layout, *outputs,
                    store.codec, store.codes, codes, store.lag,
                )  # fmt: skip
            if store is not None:
                pages = [s.cache.page_table for s in step.sequences]  # type: ignore[attr-defined]  # likewise
                return self.native.run(*arguments, pages, store.native, store.layout, *outputs)
            return self.native.run(*arguments, [], None, None, *outputs)
        except _native.WeightReadError as e:
            raise FileFormatError(str(e)) from e
        except RuntimeError as e:  # no threads
            raise CapacityError(str(e)) from e

    def _inserted(self, step: Step) -> tuple[Step, list[Ints]]:
        """Return the step with the tokens that caches insert, and each sequence's positions."""
        tokens, slices, positions, row_of = [], [], [], []
        n = 0
        for s in step.sequences:
            own = step.tokens[s.begin : s.end]
            rows = np.arange(len(own), dtype=np.int32)
            at = rows + np.int32(s.cache.n_tokens)
            if self.config.landmark is not None and isinstance(s.cache, InsertingCache):
                own, rows, at = s.cache.insert(own)
            tokens.append(own)
            row_of.append(rows + np.int32(n))
            slices.append(SequenceSlice(s.cache, n, n + len(own)))
            positions.append(at)
            n += len(own)
        if n != len(step.tokens):
            self._row_of = np.concatenate(row_of)
            rows = self._row_of[step.logit_rows]
            step = Step(np.concatenate(tokens), slices, rows)
        return step, positions

    def _attend(self, attention: Attention, s: SequenceSlice, positions: Ints) -> None:
        """Let a cache outside the program do one layer of one sequence."""
        c = self.config
        rows = slice(s.begin, s.end)
        n = s.end - s.begin

        def view(buffer: int) -> Floats:
            return self.native.rows(buffer)[rows]

        def rotate(heads: Floats, norm: Norm | None, at: Ints) -> Floats:
            heads = np.ascontiguousarray(heads).reshape(len(heads), -1, c.head_dim)
            if norm is not None:
                heads = _native.rms_norm(heads, norm.gain, norm.eps)
            tables = self._program.rotary
            return _native.rope(heads, tables.cos[at], tables.sin[at], tables.style)

        inputs = AttentionInput(
            view(attention.k),
            view(attention.v),
            lambda: _native.rms_norm(view(attention.x), attention.norm.gain, attention.norm.eps),
            lambda: view(attention.x),
            lambda k, at: rotate(k, attention.k_norm, at).reshape(len(k), -1),
            Rotary(*self._program.rotary),
        )
        s.cache.append(attention.layer, inputs, positions)
        q = rotate(view(attention.q), attention.q_norm, positions)
        out = s.cache.attend(attention.layer, q, positions)
        view(attention.out)[:] = out.reshape(n, -1)


def _common_store(sequences: Sequence[SequenceSlice]) -> PagePool | CodedStore | None:
    """The memory that the program knows all caches of a step in, or None if one is of its own."""
    stores = {id(store): store for s in sequences if (store := _store_of(s.cache)) is not None}
    if len(stores) == 1 and all(_store_of(s.cache) is not None for s in sequences):
        return next(iter(stores.values()))
    return None


def _store_of(cache: KVCache) -> PagePool | CodedStore | None:
    if isinstance(cache, PagedKVCache):
        return cache.pool
    return cache.store if isinstance(cache, CodedKVCache) else None
