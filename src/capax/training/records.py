"""Records: short texts of which a tiny model reads the first part and learns the second.

A task draws records over a small vocabulary of its own; a step of training learns from blocks of
them, which are a function of (task, seed, step) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

END = "<|end|>"


class Record(NamedTuple):
    """Tokens that are given and tokens to learn, the end included."""

    prompt: Sequence[str]
    answer: Sequence[str]


class RecordTask(Protocol):
    """`tokens`: what a text is made of, without `END`; `merges`: pairs that the tokenizer joins."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> Sequence[str]: ...

    @property
    def merges(self) -> Sequence[tuple[str, str]]: ...

    @property
    def context_len(self) -> int: ...

    def record(self, rng: np.random.Generator) -> Record:
        """Return a text to learn from, never of a question that is held out."""
        ...


class Batches:
    """What each step learns from, a function of (task, seed, step) alone.

    Blocks of int32 token ids [n, t], records of similar length in a block. Tokens of the prompt
    and padding come as ~id: read, not predicted. Padding is `END`.
    """

    def __init__(self, task: RecordTask, seed: int, n_tokens: int, n_blocks: int) -> None:
        self._task, self._seed = task, seed
        self._n_tokens, self._n_blocks = n_tokens, n_blocks
        self._ids = {token: i for i, token in enumerate((*task.tokens, END))}

    def documents(self, step: int) -> list[np.ndarray]:
        """Return blocks of about `n_tokens` tokens in all, padding not counted."""
        rng = np.random.default_rng([self._seed, 3, step])
        rows: list[list[int]] = []
        n_left = self._n_tokens
        while n_left > 0:
            record = self._task.record(rng)
            row = [~self._ids[t] for t in record.prompt] + [self._ids[t] for t in record.answer]
            rows.append(row)
            n_left -= len(row)
        rows.sort(key=len)
        cuts = np.linspace(0, len(rows), min(self._n_blocks, len(rows)) + 1).astype(int)
        return [self._padded(rows[begin:end]) for begin, end in pairwise(cuts)]

    def _padded(self, rows: list[list[int]]) -> np.ndarray:
        block = np.full((len(rows), max(map(len, rows))), ~self._ids[END], np.int32)
        for out, row in zip(block, rows, strict=True):
            out[: len(row)] = row
        return block
