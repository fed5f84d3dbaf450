"""The full KV cache, in pages (Kwon et al., 2023, arXiv 2309.06180).

Idea. Keys and values of every position are kept, in pages of 64 positions that need not be
neighbours in memory: a sequence is a table of page ids. Sequences that share a prefix share
its pages; a shared page is copied before the first write to it.
Keeps: per page, layer and KV head, K transposed [head_dim, 64] and V [64, head_dim], in
f32, f16, bf16, or int8 with one float32 scale per token and head for K and for V each.
Costs: `page_nbytes(...)` per 64 positions; attention is native and reads each page once for
all query heads of its group. Keys are stored rotated.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import CapacityError, ConfigError, StoreError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.cache import AttentionInput, Floats, Positions
from capax.kv.store import KVFootprint
from capax.methods import Method, register

KVType = Literal["f32", "f16", "bf16", "int8"]
KV_TYPES: tuple[KVType, ...] = ("f32", "f16", "bf16", "int8")
PAGE_TOKENS: int = _native.PAGE_TOKENS
_SYSTEM_PAGE = 4096

_EXPORT_HEADER = struct.Struct("<8s6qI")  # magic, layout (5), n_tokens, crc32 of the pages
_EXPORT_MAGIC = b"capaxkv1"


def page_nbytes(config: ModelConfig, kv_type: KVType) -> int:
    """Return the bytes of one page: 64 positions over all kept layers and KV heads."""
    layout = _native.KVLayout(kv_type, config.n_kv_heads, config.head_dim, config.head_dim)
    return layout.layer_page_nbytes * config.n_cache_layers


def pages_for(n_tokens: int) -> int:
    """Return how many pages hold `n_tokens` positions."""
    return -(-n_tokens // PAGE_TOKENS)


class PagePool:
    """The pages of one model's sequences, at most `n_pages`; memory is taken on first use."""

    def __init__(self, config: ModelConfig, kv_type: KVType, n_pages: int) -> None:
        if kv_type not in KV_TYPES:
            raise ConfigError(
                f"KV cache type {kv_type!r} is unknown: use one of {', '.join(KV_TYPES)}"
            )
        self.config = config
        self.kv_type = kv_type
        self.layout = _native.KVLayout(kv_type, config.n_kv_heads, config.head_dim, config.head_dim)
        self.native = _native.PagePool(page_nbytes(config, kv_type), n_pages)

    page_tokens = PAGE_TOKENS
    shares_partial_pages = True

    @property
    def capacity(self) -> int:
        return self.native.capacity

    @property
    def n_free(self) -> int:
        return self.native.capacity - self.native.n_in_use

    @property
    def nbytes(self) -> int:
        """Bytes taken from the system so far."""
        return self.native.resident_nbytes

    @property
    def shared_pages(self) -> _native.PagePool:
        return self.native

    def pages_for(self, n_tokens: int) -> int:
        return pages_for(n_tokens)

    def new(self) -> PagedKVCache:
        return PagedKVCache(self)

    def trim(self) -> None:
        """Give the memory of free pages back to the system."""
        self.native.trim()

    def check_integrity(self) -> bool:
        return self.native.check_integrity()


class PagedKVCache:
    """A sequence's page table over a `PagePool`."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._table: npt.NDArray[np.int32] = np.full(8, -1, np.int32)
        self._n_pages = 0
        self._n_tokens = 0

    @property
    def pool(self) -> PagePool:
        return self._pool

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def nbytes(self) -> int:
        return self._n_pages * self._pool.native.page_nbytes

    @property
    def page_table(self) -> npt.NDArray[np.int32]:
        """The ids of this sequence's pages, in order: int32 [n_pages], a view."""
        return self._table[: self._n_pages]

    @property
    def n_shareable(self) -> int:
        return self._n_tokens

    def reserve(self, n_new: int) -> None:
        pool = self._pool.native
        needed = pages_for(self._n_tokens + n_new)
        # A partly filled page that another sequence also reads is copied before it is written.
        last = self._n_tokens // PAGE_TOKENS
        shared = self._n_tokens % PAGE_TOKENS != 0 and pool.references(int(self._table[last])) > 1
        if needed - self._n_pages + shared > self._pool.n_free:
            raise CapacityError(
                f"the KV cache is full: {n_new} more tokens need "
                f"{needed - self._n_pages + shared} pages of {PAGE_TOKENS} tokens and "
                f"{self._pool.n_free} of {pool.capacity} are free; "
                "raise the memory budget or use a smaller context"
            )
        if shared:
            page = int(self._table[last])
            self._table[last] = pool.copy(page)
            pool.release(page)
        if needed > len(self._table):
            grown = np.full(max(needed, 2 * len(self._table)), -1, np.int32)
            grown[: self._n_pages] = self.page_table
            self._table = grown
        while self._n_pages < needed:
            self._table[self._n_pages] = pool.allocate()
            self._n_pages += 1

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        c = self._pool.config
        k = inputs.rotate(inputs.k, positions)
        _native.kv_append(
            self._pool.layout,
            self._pool.native.memory,
            layer * self._pool.layout.layer_page_nbytes,
            self.page_table,
            k.reshape(len(k), c.n_kv_heads, c.head_dim),
            np.ascontiguousarray(inputs.v).reshape(len(k), c.n_kv_heads, c.head_dim),
            int(positions[0]),
        )

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        c = self._pool.config
        return _native.kv_attend(
            self._pool.layout,
            self._pool.native.memory,
            layer * self._pool.layout.layer_page_nbytes,
            self.page_table,
            q,
            int(positions[0]),
            c.attention_scale,
            c.window_of(layer) or 0,
        )

    def advance(self, n_new: int) -> None:
        self._n_tokens += n_new

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._n_tokens:
            raise ValueError(f"cannot truncate {self._n_tokens} tokens to {n_tokens}")
        # Off the table first: an interrupt may then lose a page, but never gives one back twice.
        forgotten = self._table[pages_for(n_tokens) : self._n_pages]
        self._n_pages = pages_for(n_tokens)
        self._n_tokens = n_tokens
        for page in forgotten:
            self._pool.native.release(int(page))

    def fork(self) -> Self:
        twin = type(self)(self._pool)
        # Pages reserved for tokens to come stay its own: both would write to them.
        shared = pages_for(self._n_tokens)
        twin._table = self._table.copy()
        for page in twin._table[:shared]:
            self._pool.native.retain(int(page))
        twin._n_pages = shared  # only now that the pages are its own too: see `truncate`
        twin._n_tokens = self._n_tokens
        return twin

    def adopt(self, pages: Sequence[int], n_tokens: int) -> None:
        """Begin with `n_tokens` that lie in `pages` of others. The cache must be empty."""
        if self._n_pages or pages_for(n_tokens) != len(pages):
            raise ValueError(f"{len(pages)} pages cannot begin a cache with {n_tokens} tokens")
        table = np.full(max(len(pages), len(self._table)), -1, np.int32)
        for i, page in enumerate(pages):
            self._pool.native.retain(page)
            table[i] = page
        self._table, self._n_pages, self._n_tokens = table, len(pages), n_tokens

    def replace_page(self, index: int, page: int) -> None:
        """Take `page` of another, which has the same content, instead of its own."""
        own = int(self._table[index])
        self._pool.native.retain(page)
        self._table[index] = page
        self._pool.native.release(own)

    def pages_wanted(self, n_new: int) -> int:
        """Return how many pages `reserve(n_new)` takes from the pool."""
        last = self._n_tokens // PAGE_TOKENS
        shared = (
            self._n_tokens % PAGE_TOKENS != 0
            and self._pool.native.references(int(self._table[last])) > 1
        )
        return max(pages_for(self._n_tokens + n_new) - self._n_pages, 0) + shared

    def export(self) -> bytes:
        held = self.page_table[: pages_for(self._n_tokens)]
        pages = b"".join(self._pool.native.read(int(page)) for page in held)
        return self._header(self._n_tokens, zlib.crc32(pages)) + pages

    def load(self, content: bytes) -> None:
        size = _EXPORT_HEADER.size
        if len(content) < size:
            raise StoreError(f"a KV record of {len(content)} bytes has no header")
        *layout, n_tokens, crc = _EXPORT_HEADER.unpack_from(content)
        expected = _EXPORT_HEADER.unpack(self._header(0, 0))[:-2]
        if tuple(layout) != expected:
            raise StoreError("the KV record belongs to another model, layout or version")
        nbytes = self._pool.native.page_nbytes
        if n_tokens < 0 or len(content) - size != pages_for(n_tokens) * nbytes:
            raise StoreError(
                f"the KV record has {len(content) - size} bytes of pages for {n_tokens} tokens, "
                f"not {pages_for(max(n_tokens, 0)) * nbytes}"
            )
        pages = memoryview(content)[size:]
        if zlib.crc32(pages) != crc:
            raise StoreError("the KV record is damaged: its checksum does not match")
        fresh = type(self)(self._pool)
        fresh.reserve(n_tokens)
        for i, page in enumerate(fresh.page_table):
            self._pool.native.write(int(page), bytes(pages[i * nbytes : (i + 1) * nbytes]))
        self.close()
        self._table, self._n_pages, self._n_tokens = fresh._table, fresh._n_pages, n_tokens
        fresh._n_pages = 0

    def close(self) -> None:
        self.truncate(0)

    def __del__(self) -> None:
        if getattr(self, "_n_pages", 0):
            self.close()

    def _header(self, n_tokens: int, crc: int) -> bytes:
        config = self._pool.config
        kind = KV_TYPES.index(self._pool.kv_type)
        return _EXPORT_HEADER.pack(
            _EXPORT_MAGIC,
            kind,
            config.n_layers,
            config.n_kv_heads,
            config.head_dim,
            self._pool.native.page_nbytes,
            n_tokens,
            crc,
        )


@dataclass(frozen=True)
class FullCache:
    """Options of the full cache: the precision that K and V are kept in."""

    type: KVType = "f16"

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return the bytes of its pages, which begin at pages of the system."""
        page = -(-page_nbytes(config, self.type) // _SYSTEM_PAGE) * _SYSTEM_PAGE
        return KVFootprint(page, PAGE_TOKENS)

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> PagePool:
        """Return a pool of `n_pages`."""
        return PagePool(model.config, self.type, n_pages)


register(
    Method(
        "full",
        "kv",
        "Kwon et al., 2023, arXiv 2309.06180",
        "Keep keys and values of every position, in pages that sequences share.",
        FullCache,
    )
)
