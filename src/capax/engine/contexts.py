"""Contexts driven by hand: for code that chooses tokens itself and wants logits.

Each is a cache of its own; `extend` runs one forward pass over new tokens of several of them.
Requests that run meanwhile share the model between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from capax.engine.engine import Engine
from capax.kv import KVCache
from capax.models import Model, SequenceSlice, Step

Floats = npt.NDArray[np.float32]


class Contexts:
    """Several contexts over one model, empty at first; made by `LLM.contexts`."""

    def __init__(self, engine: Engine, model: Model, caches: Sequence[KVCache]) -> None:
        self._engine = engine
        self._model = model
        self._caches = caches

    def extend(self, new: Sequence[tuple[int, Sequence[int]]]) -> Floats:
        """Append tokens to contexts: (index, tokens), each index once, no tokens empty.

        Returns the logits after the last token of each: float32 [len(new), vocab_size]. Raises
        ValueError for more tokens of one context than a step takes.
        """
        parts = []
        for part in self._steps(new):
            with self._engine.exclusive():
                parts.append(self._step(part).copy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def advance(self, new: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Like `extend`, for those who do not want the logits; they are computed all the same."""
        for part in self._steps(new):
            with self._engine.exclusive():
                self._step(part)

    def _steps(
        self, new: Sequence[tuple[int, Sequence[int]]]
    ) -> Iterator[Sequence[tuple[int, Sequence[int]]]]:
        """Cut into parts that a step has room for."""
        begin = n_tokens = 0
        for i, (_, tokens) in enumerate(new):
            n_tokens += len(tokens)
            if n_tokens > self._model.max_tokens or i - begin == self._model.max_logit_rows:
                yield new[begin:i]
                begin, n_tokens = i, len(tokens)
        yield new[begin:]

    def _step(self, new: Sequence[tuple[int, Sequence[int]]]) -> Floats:
        """Run one step; returns a view that the next one overwrites."""
        slices, tokens = self._slices(new)
        for s in slices:
            s.cache.reserve(s.end - s.begin)
        rows = np.array([s.end - 1 for s in slices], np.int32)
        return self._model.forward(Step(np.array(tokens, np.int32), slices, rows))

    def _slices(
        self, new: Sequence[tuple[int, Sequence[int]]]
    ) -> tuple[list[SequenceSlice], list[int]]:
        slices = []
        tokens: list[int] = []
        for index, added in new:
            slices.append(SequenceSlice(self._caches[index], len(tokens), len(tokens) + len(added)))
            tokens += added
        return slices, tokens

    def visit_tails(
        self,
        new: Sequence[tuple[int, Sequence[int]]],
        n_rows: int,
        visit: Callable[[int, int, Floats], None],
    ) -> None:
        """Append tokens to contexts; show the logits of the last `n_rows` tokens of each, in order.

        visit(context, which of those rows comes first, logits float32 [rows, vocab_size]); views,
        valid during the call. Contexts share a step as far as it has room. Raises ValueError for
        fewer tokens than rows, or more rows than a step takes.
        """
        size = self._model.max_tokens
        waiting: list[tuple[int, Sequence[int]]] = []
        for index, tokens in new:
            if not 0 < n_rows <= min(len(tokens), size):
                raise ValueError(f"{n_rows} rows are wanted of {len(tokens)} tokens, {size} a step")
            while len(tokens) > size:  # its beginning needs a step of its own, and no logits
                n = min(size, len(tokens) - n_rows)
                self._body([(index, tokens[:n])], 0, visit)
                tokens = tokens[n:]
            if sum(len(t) for _, t in waiting) + len(tokens) > size:
                self._body(waiting, n_rows, visit)
                waiting = []
            waiting.append((index, tokens))
        self._body(waiting, n_rows, visit)

    def _body(
        self,
        new: Sequence[tuple[int, Sequence[int]]],
        n_rows: int,
        visit: Callable[[int, int, Floats], None],
    ) -> None:
        model = self._model
        if not new:
            return
        slices, tokens = self._slices(new)
        with self._engine.exclusive():
            for s in slices:
                s.cache.reserve(s.end - s.begin)
            model.run_body(Step(np.array(tokens, np.int32), slices, np.empty(0, np.int32)))
            for s, (index, _) in zip(slices, new, strict=True):
                for first, end in _cut(n_rows, model.max_logit_rows):
                    rows = np.arange(s.end - n_rows + first, s.end - n_rows + end, dtype=np.int32)
                    visit(index, first, model.run_head(rows))

    def truncate(self, index: int, n_tokens: int) -> None:
        """Forget every token of a context from `n_tokens` on.

        Raises ValueError where the cache has given up what it needs to go back so far; 0 always
        works.
        """
        with self._engine.exclusive():
            self._caches[index].truncate(n_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that the contexts hold."""
        return sum(cache.nbytes for cache in self._caches)

    def each_logits(self, index: int, tokens: Sequence[int]) -> Iterator[tuple[int, Floats]]:
        """Append tokens to one context; yield the logits after every one of them.

        Each piece is (number of its first token, logits float32 [rows, vocab_size]).
        """
        cache, model = self._caches[index], self._model
        for begin in range(0, len(tokens), model.max_tokens):
            part = np.array(tokens[begin : begin + model.max_tokens], np.int32)
            with self._engine.exclusive():
                cache.reserve(len(part))
                nothing = np.empty(0, np.int32)
                model.run_body(Step(part, [SequenceSlice(cache, 0, len(part))], nothing))
                pieces = [
                    (row, model.run_head(np.arange(row, end, dtype=np.int32)).copy())
                    for row, end in _cut(len(part), model.max_logit_rows)
                ]
            for row, logits in pieces:
                yield begin + row, logits


def _cut(n: int, size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, n, size):
        yield begin, min(begin + size, n)
