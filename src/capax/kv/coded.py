"""Caches that keep older blocks of positions as codes, inside the native program.

A codec turns blocks of 64 or 128 positions into codes: uniform ones (`quantized`), product
quantisation (`million`). The positions alone decide what a query reads: with blocks of B, a query
at p reads the token at j from codes iff j // B + lag < p // B, and exactly otherwise. So prefill in
any chunks, decode, and a prefix taken over from others give the same bits. A lag of -1 reads the
query's own block from codes as well, to measure a codec with: no exact window, a step takes whole
blocks, and a token sees scales that later tokens of its block had a part in.

A sequence holds a table of code pages (a block over all layers, shared between sequences once they
are full) and exact pages of 64 positions for its last blocks only: those of older ones are given
back, and what a step fills and encodes at once never leaves the program's scratch memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import CapacityError, StoreError
from capax.files.config import ModelConfig
from capax.kv.cache import AttentionInput, Floats, Positions
from capax.kv.paged import PAGE_TOKENS, KVType, PagePool, page_nbytes, pages_for
from capax.kv.store import KVFootprint

_SYSTEM_PAGE = 4096
_EXPORT_HEADER = struct.Struct("<8s7qI")  # magic, layout (6), n_tokens, crc32 of the pages
_EXPORT_MAGIC = b"capaxkc1"


def coded_footprint(
    config: ModelConfig,
    codec: _native.Codec,
    *,
    lag: int = 0,
    exact: KVType = "f16",
    shared: int = 0,
) -> KVFootprint:
    """Return the bytes of a `CodedStore`: code pages, exact windows, and `shared` of the codec.

    A window has room for the blocks that are read exactly. What a step passes through scratch
    memory on its way into codes comes on top of that.
    """
    page = page_nbytes(config, exact)
    window = codec.block_tokens // PAGE_TOKENS * (lag + 1)
    return KVFootprint(
        page=_whole_pages(codec.page_nbytes),
        page_tokens=codec.block_tokens,
        sequence=window * _whole_pages(page),
        shared=shared,
        scratch_token=page // config.n_cache_layers // PAGE_TOKENS,
    )


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // _SYSTEM_PAGE) * _SYSTEM_PAGE


class CodedStore:
    """The pages of one model's coded caches: at most `n_pages` blocks of codes.

    `name`: what makes its codes, codebooks included; records of another name are refused.
    `lag`: blocks before a query's own that are read exactly too; -1: not even its own.
    `shared`: bytes of what the codec keeps besides, its codebooks.
    """

    shares_partial_pages = False

    def __init__(
        self,
        config: ModelConfig,
        codec: _native.Codec,
        n_pages: int,
        name: str,
        *,
        lag: int = 0,
        exact: KVType = "f16",
        shared: int = 0,
    ) -> None:
        if lag < -1 or exact == "int8":
            raise ValueError(f"lag {lag} must be -1 or more, exact type {exact!r} a float type")
        self.config = config
        self.codec = codec
        self.name = name
        self.lag = lag
        self.page_tokens: int = codec.block_tokens
        self.parts = codec.block_tokens // PAGE_TOKENS
        self.codes = _native.PagePool(codec.page_nbytes, n_pages)
        # A sequence never has more exact pages than its code pages have room for, so if there are
        # code pages there are exact ones: only those in use take memory.
        self.exact = PagePool(config, exact, n_pages * self.parts)
        self._shared_nbytes = shared

    @property
    def capacity(self) -> int:
        return self.codes.capacity

    @property
    def n_free(self) -> int:
        return self.codes.capacity - self.codes.n_in_use

    @property
    def nbytes(self) -> int:
        return self.codes.resident_nbytes + self.exact.native.resident_nbytes + self._shared_nbytes

    @property
    def shared_pages(self) -> _native.PagePool | None:
        """The code pages. With a lag, the blocks after a prefix need exact ones before them."""
        return self.codes if self.lag <= 0 else None

    def pages_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_tokens)

    def new(self) -> CodedKVCache:
        return CodedKVCache(self)

    def trim(self) -> None:
        self.codes.trim()
        self.exact.native.trim()

    def check_integrity(self) -> bool:
        return self.codes.check_integrity() and self.exact.native.check_integrity()


class CodedKVCache:
    """A sequence's code pages, and the exact pages of its last blocks."""

    def __init__(self, store: CodedStore) -> None:
        self._store = store
        self._codes = _Table(store.codes)
        self._exact = _Table(store.exact.native)  # with holes: -1 where only codes are left
        self._n_tokens = 0

    @property
    def store(self) -> CodedStore:
        return self._store

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def nbytes(self) -> int:
        n_exact = int(np.count_nonzero(self._exact.pages >= 0))
        codes = len(self._codes.pages) * self._store.codes.page_nbytes
        return codes + n_exact * self._store.exact.native.page_nbytes

    @property
    def page_table(self) -> npt.NDArray[np.int32]:
        """The ids of its code pages, in order: int32 [blocks], a view."""
        return self._codes.pages

    @property
    def n_shareable(self) -> int:
        size = self._store.page_tokens
        return self._n_tokens // size * size if self._store.lag <= 0 else 0

    def pages_wanted(self, n_new: int) -> int:
        needed = self._store.pages_for(self._n_tokens + n_new)
        return max(needed - len(self._codes.pages), 0) + len(self._blocks_to_copy())

    def reserve(self, n_new: int) -> None:
        wanted = self.pages_wanted(n_new)
        if wanted > self._store.n_free:
            raise CapacityError(
                f"the KV cache is full: {n_new} more tokens need {wanted} pages of "
                f"{self._store.page_tokens} tokens and {self._store.n_free} of "
                f"{self._store.capacity} are free; raise the memory budget or use a smaller context"
            )
        for block in self._blocks_to_copy():
            self._codes.copy(block)
        held = len(self._codes.pages)
        self._codes.grow(self._store.pages_for(self._n_tokens + n_new))
        for block in range(held, len(self._codes.pages)):
            self._codes.fill(block)

    def tables(self, n_new: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return exact and code page tables for a step of `n_new` tokens, which have room.

        Takes the exact pages that the step fills for later ones; what it fills and encodes at once
        needs none. Partly filled pages that a fork reads too are copied.
        """
        n, end, size = self._n_tokens, self._n_tokens + n_new, self._store.page_tokens
        self._exact.grow(pages_for(end))
        last = n // PAGE_TOKENS
        if n % PAGE_TOKENS and self._exact.is_shared(last):
            self._exact.copy(last)
        kept = self._first_exact_block(end)
        for page in range(-(-n // PAGE_TOKENS), pages_for(end)):
            block = page // self._store.parts
            if block >= kept or block * size < n:
                self._exact.fill(page)
        return self._exact.pages, self._codes.pages

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        raise ValueError(_INSIDE)

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        raise ValueError(_INSIDE)

    def advance(self, n_new: int) -> None:
        before = self._first_exact_block(self._n_tokens)
        self._n_tokens += n_new
        now = self._first_exact_block(self._n_tokens)
        parts = self._store.parts
        pages = range(before * parts, min(now * parts, len(self._exact.pages)))
        if self._exact.release(pages) and self._n_tokens % self._store.page_tokens:
            # Old and new window lay side by side during the step: one of them is too many.
            self._store.exact.native.trim()

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._n_tokens:
            raise ValueError(f"cannot truncate {self._n_tokens} tokens to {n_tokens}")
        first = self._first_exact_block(n_tokens) * self._store.parts
        if np.any(self._exact.pages[first : pages_for(n_tokens)] < 0):
            raise ValueError(
                f"cannot truncate {self._n_tokens} tokens to {n_tokens}: of the tokens from "
                f"{first * PAGE_TOKENS} on only codes are left; "
                f"compute them again from {first * PAGE_TOKENS} on"
            )
        self._codes.shrink(self._store.pages_for(n_tokens))
        self._exact.shrink(pages_for(n_tokens))
        self._n_tokens = n_tokens

    def fork(self) -> Self:
        twin = type(self)(self._store)
        # Code pages of blocks that are not full stay its own: both would write to them.
        twin._codes.take_over(self._codes.pages[: self._n_tokens // self._store.page_tokens])
        twin._exact.take_over(self._exact.pages[: pages_for(self._n_tokens)])
        twin._n_tokens = self._n_tokens
        return twin

    def adopt(self, pages: Sequence[int], n_tokens: int) -> None:
        """Begin with `n_tokens` that lie in full code pages of others. The cache must be empty."""
        if len(self._codes.pages) or len(pages) * self._store.page_tokens != n_tokens:
            raise ValueError(f"{len(pages)} code pages cannot begin a cache with {n_tokens} tokens")
        if self._store.lag > 0:
            raise ValueError("a cache with a lag cannot begin with codes alone")
        self._codes.take_over(pages)
        self._exact.grow(pages_for(n_tokens))
        self._n_tokens = n_tokens

    def replace_page(self, index: int, page: int) -> None:
        """Take the code page of another, which has the same content, instead of its own."""
        self._codes.replace(index, page)

    def export(self) -> bytes:
        n_codes, exact = self._extent(self._n_tokens)
        codes, pages = self._store.codes, self._store.exact.native
        content = b"".join(
            [codes.read(int(page)) for page in self._codes.pages[:n_codes]]
            + [pages.read(int(self._exact.pages[index])) for index in exact]
        )
        return self._header(self._n_tokens, zlib.crc32(content)) + content

    def load(self, content: bytes) -> None:
        size = _EXPORT_HEADER.size
        if len(content) < size:
            raise StoreError(f"a KV record of {len(content)} bytes has no header")
        *layout, n_tokens, crc = _EXPORT_HEADER.unpack_from(content)
        if tuple(layout) != _EXPORT_HEADER.unpack(self._header(0, 0))[:-2]:
            raise StoreError("the KV record belongs to another model, method, layout or version")
        fresh = type(self)(self._store)
        n_codes, exact = fresh._extent(max(n_tokens, 0))
        code_nbytes, exact_nbytes = (
            p.page_nbytes for p in (self._store.codes, self._store.exact.native)
        )
        expected = n_codes * code_nbytes + len(exact) * exact_nbytes
        if n_tokens < 0 or len(content) - size != expected:
            raise StoreError(
                f"the KV record has {len(content) - size} bytes of pages for {n_tokens} tokens, "
                f"not {expected}"
            )
        pages = memoryview(content)[size:]
        if zlib.crc32(pages) != crc:
            raise StoreError("the KV record is damaged: its checksum does not match")
        fresh.reserve(n_tokens)
        fresh._exact.grow(pages_for(n_tokens))
        for i, page in enumerate(fresh._codes.pages):
            part = pages[i * code_nbytes : (i + 1) * code_nbytes]
            self._store.codes.write(int(page), bytes(part))
        for i, index in enumerate(exact):
            fresh._exact.fill(index)
            begin = n_codes * code_nbytes + i * exact_nbytes
            part = pages[begin : begin + exact_nbytes]
            self._store.exact.native.write(int(fresh._exact.pages[index]), bytes(part))
        self.close()
        self._codes, self._exact, self._n_tokens = fresh._codes, fresh._exact, n_tokens
        fresh._codes, fresh._exact = _Table(self._store.codes), _Table(self._store.exact.native)

    def close(self) -> None:
        self._n_tokens = 0
        self._codes.shrink(0)
        self._exact.shrink(0)

    def __del__(self) -> None:
        if hasattr(self, "_n_tokens"):
            self.close()

    def _first_exact_block(self, n_tokens: int) -> int:
        """The first block that a query at `n_tokens` reads exactly, or that it belongs to."""
        return max(n_tokens // self._store.page_tokens - max(self._store.lag, 0), 0)

    def _extent(self, n_tokens: int) -> tuple[int, range]:
        """How many code pages, and which exact ones, hold `n_tokens`."""
        first = self._first_exact_block(n_tokens) * self._store.parts
        return self._store.pages_for(n_tokens), range(first, max(pages_for(n_tokens), first))

    def _blocks_to_copy(self) -> list[int]:
        """Full blocks that are not wholly encoded yet and that a fork encodes too."""
        full = self._n_tokens // self._store.page_tokens
        return [
            b
            for b in range(self._first_exact_block(self._n_tokens), full)
            if self._codes.is_shared(b)
        ]

    def _header(self, n_tokens: int, crc: int) -> bytes:
        store = self._store
        return _EXPORT_HEADER.pack(
            _EXPORT_MAGIC,
            zlib.crc32(store.name.encode()),
            store.page_tokens,
            store.lag,
            store.config.n_layers,
            store.codes.page_nbytes,
            store.exact.native.page_nbytes,
            n_tokens,
            crc,
        )


_INSIDE = "a coded cache works inside the program: all caches of a step must be of its store"


class _Table:
    """Pages of a pool that a sequence holds a reference of each; -1 where it has none."""

    def __init__(self, pool: _native.PagePool) -> None:
        self._pool = pool
        self._table: npt.NDArray[np.int32] = np.full(8, -1, np.int32)
        self._n = 0

    @property
    def pages(self) -> npt.NDArray[np.int32]:
        return self._table[: self._n]

    def grow(self, n: int) -> None:
        """Be `n` entries long at least, the new ones without a page."""
        if n > len(self._table):
            grown = np.full(max(n, 2 * len(self._table)), -1, np.int32)
            grown[: self._n] = self.pages
            self._table = grown
        self._n = max(self._n, n)

    def fill(self, index: int) -> None:
        """Allocate the page of an entry that has none. There must be a free one."""
        if self._table[index] < 0:
            page = self._pool.allocate()
            assert page >= 0  # counted before
            self._table[index] = page

    def is_shared(self, index: int) -> bool:
        return self._table[index] >= 0 and self._pool.references(int(self._table[index])) > 1

    def copy(self, index: int) -> None:
        """Exchange a page for a copy of its own."""
        page = int(self._table[index])
        fresh = self._pool.copy(page)
        assert fresh >= 0
        self._table[index] = fresh
        self._pool.release(page)

    def replace(self, index: int, page: int) -> None:
        own = int(self._table[index])
        self._pool.retain(page)
        self._table[index] = page
        self._pool.release(own)

    def take_over(self, pages: Iterable[int]) -> None:
        """Begin with pages of others. The table must be empty."""
        for page in pages:
            self.grow(self._n + 1)
            if page >= 0:
                self._pool.retain(int(page))
                self._table[self._n - 1] = page

    def release(self, indices: Iterable[int]) -> int:
        """Give back the pages of these entries; returns how many there were."""
        n = 0
        for i in indices:
            page = int(self._table[i])
            if page >= 0:
                self._table[i] = -1  # off the table first: an interrupt loses a page at worst
                self._pool.release(page)
                n += 1
        return n

    def shrink(self, n: int) -> None:
        """Be `n` entries long at most, and give back the pages of the rest."""
        n, before = min(n, self._n), self._n
        self._n = n
        self.release(range(n, before))
