"""What is remembered of a sequence's context: the interface every KV method implements.

A cache belongs to one sequence. The forward pass calls `append` and then `attend` once per
layer for the new tokens; the engine calls `truncate`, `fork` and `close`. Methods decide for
themselves what they keep of a token: `AttentionInput` offers the layer's input as well as
the projected keys and values, so that a method may store either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]


class Rotary(NamedTuple):
    """The model's rotary tables: cos, sin [n_positions, head_dim / 2]; which numbers pair."""

    cos: Floats
    sin: Floats
    style: str


@dataclass(frozen=True, slots=True)
class AttentionInput:
    """What a layer hands to the cache for `t` new tokens (views valid during the call).

    `k`, `v`: [t, n_kv_heads * head_dim] float32, projected (bias added), keys not yet
    normalised or rotated. `x()` computes the layer's normalised input, [t, d_model]; `h()` is the
    residual stream before that norm, [t, d_model].
    `rotate(k, positions)` applies the model's QK norm and rotary embedding to a copy of keys.
    `rotary`: the tables it turns them by, for caches that turn keys again later.
    """

    k: Floats
    v: Floats
    x: Callable[[], Floats]
    h: Callable[[], Floats]
    rotate: Callable[[Floats, Positions], Floats]
    rotary: Rotary | None = None


class KVCache(Protocol):
    """One sequence's memory of its context. `n_tokens` positions are held: 0 .. n_tokens - 1."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes this sequence keeps, scales and codebooks included; shared pages count in full."""
        ...

    def pages_wanted(self, n_new: int) -> int:
        """Return how many pages of its store `reserve(n_new)` takes."""
        ...

    def reserve(self, n_new: int) -> None:
        """Make room for `n_new` more positions, or raise CapacityError and change nothing."""
        ...

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        """Store what the method keeps of the tokens at `positions` (int32 [t], consecutive)."""
        ...

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        """Attend with rotated queries [t, n_heads, head_dim]; returns the same shape."""
        ...

    def advance(self, n_new: int) -> None:
        """Count `n_new` appended positions as held, after the last layer has run."""
        ...

    def truncate(self, n_tokens: int) -> None:
        """Forget every position from `n_tokens` on.

        Raises ValueError if it holds fewer, or has given up what it needs to go back so far.
        """
        ...

    def fork(self) -> Self:
        """Return a second cache with the same content; later changes do not meet."""
        ...

    def export(self) -> bytes:
        """Return the content as bytes that `load` of an equally configured cache accepts."""
        ...

    def load(self, content: bytes) -> None:
        """Replace the content.

        Raises StoreError for anything foreign and CapacityError if there is no room for it,
        changing nothing.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the cache is empty afterwards."""
        ...


@runtime_checkable
class SharedPagesCache(KVCache, Protocol):
    """A cache whose pages others may take over: those of its store's `shared_pages`."""

    @property
    def page_table(self) -> npt.NDArray[np.int32]:
        """The ids of its pages, in order: int32 [n_pages], a view."""
        ...

    @property
    def n_shareable(self) -> int:
        """Tokens from the first on that lie in pages which others may take over."""
        ...

    def adopt(self, pages: Sequence[int], n_tokens: int) -> None:
        """Begin with `n_tokens` that lie in `pages` of others. The cache must be empty."""
        ...

    def replace_page(self, index: int, page: int) -> None:
        """Take `page` of another, which has the same content, instead of its own."""
        ...


class Inserted(NamedTuple):
    """What a sequence reads instead of its `tokens`: int32 arrays, one row per token read.

    `rows`: of the tokens asked for, where they stand among those read. `positions`: what queries
    are rotated by, which need not count from 0.
    """

    tokens: Positions
    rows: Positions
    positions: Positions


@runtime_checkable
class InsertingCache(KVCache, Protocol):
    """A cache of a model that reads tokens of its own between those of the text.

    `n_tokens` counts those of the text. `append`, `attend` and `advance` are called with the rows
    and positions that `insert` returned for the same step.
    """

    def insert(self, tokens: Positions) -> Inserted:
        """Return what to read for the next `tokens` of the text. Changes nothing."""
        ...
