"""The memory of one model's sequences under one method, counted in pages.

`KVFootprint` says beforehand what will be held; what a store allocates must agree with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from capax import _native
from capax.errors import CapacityError
from capax.kv.cache import KVCache


@dataclass(frozen=True, slots=True)
class KVFootprint:
    """Bytes of a method, all of them: what it allocates must agree.

    `page`: one page of `page_tokens` positions; a sequence holds at most `max_pages`, None: as many
    as its length takes. `sequence`: what each running sequence holds besides, whatever its length
    (exact windows, residuals). `shared`: once per model (codebooks, factors, gates). `scratch`:
    what a step works in, and `scratch_token` for each of its tokens.
    """

    page: int
    page_tokens: int
    max_pages: int | None = None
    sequence: int = 0
    shared: int = 0
    scratch: int = 0
    scratch_token: int = 0
    codes: int | None = None

    def pages_for(self, n_tokens: int) -> int:
        """Return how many pages a sequence of `n_tokens` holds."""
        pages = -(-n_tokens // self.page_tokens)
        return pages if self.max_pages is None else min(pages, self.max_pages)

    def nbytes(self, n_tokens: int, n_sequences: int = 1, n_running: int | None = None) -> int:
        """Return the bytes kept of `n_sequences` sequences of `n_tokens`, and what they share.

        `n_running`: sequences with room for their extras, None: as many.
        """
        pages = n_sequences * self.pages_for(n_tokens) * self.page
        return (
            self.shared + pages + (n_sequences if n_running is None else n_running) * self.sequence
        )


class KVStore(Protocol):
    """The memory that all sequences of one model share under one method. Not thread-safe.

    Room is counted in pages as the method's `KVFootprint` says.
    """

    @property
    def capacity(self) -> int:
        """Pages there can be."""
        ...

    @property
    def n_free(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes taken from the system so far, shared ones included."""
        ...

    @property
    def page_tokens(self) -> int: ...

    @property
    def shared_pages(self) -> _native.PagePool | None:
        """Where pages lie that sequences may share by content; None: prompts are recomputed."""
        ...

    @property
    def shares_partial_pages(self) -> bool:
        """Whether a page that is not full may be shared too, copied at its first write."""
        ...

    def pages_for(self, n_tokens: int) -> int: ...

    def new(self) -> KVCache:
        """Return an empty cache."""
        ...

    def trim(self) -> None:
        """Give the memory of free pages back to the system."""
        ...

    def check_integrity(self) -> bool:
        """Whether free and used pages add up."""
        ...


class CountedStore:
    """Room for caches that keep arrays of their own: pages are only counted.

    A cache calls `take` before it grows and `give_back` when it shrinks, in pages, and reports its
    bytes by `nbytes_changed`.
    """

    shared_pages = None
    shares_partial_pages = False

    def __init__(self, footprint: KVFootprint, n_pages: int) -> None:
        self.footprint = footprint
        self.capacity = n_pages
        self._n_taken = 0
        self._nbytes = footprint.shared

    @property
    def n_free(self) -> int:
        return self.capacity - self._n_taken

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def page_tokens(self) -> int:
        return self.footprint.page_tokens

    def pages_for(self, n_tokens: int) -> int:
        return self.footprint.pages_for(n_tokens)

    def take(self, n_pages: int) -> None:
        """Count pages as taken, or raise CapacityError and change nothing."""
        if n_pages > self.n_free:
            raise CapacityError(
                f"the KV cache is full: {n_pages} more pages of {self.page_tokens} tokens are "
                f"needed and {self.n_free} of {self.capacity} are free; "
                "raise the memory budget or use a smaller context"
            )
        self._n_taken += n_pages

    def give_back(self, n_pages: int) -> None:
        """Count pages as free again."""
        self._n_taken -= n_pages

    def nbytes_changed(self, by: int) -> None:
        """Note that a cache holds so many bytes more (or fewer)."""
        self._nbytes += by

    def trim(self) -> None:
        """Nothing is held for later."""

    def check_integrity(self) -> bool:
        return 0 <= self._n_taken <= self.capacity
