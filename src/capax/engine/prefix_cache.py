"""Pages of prompts and answers, kept so that nobody computes them twice.

A page is found by what it stands for: its key is the SHA-256 of the key of the page before it and
of its own tokens, chained from a root made of the namespace, so equal tokens of two tenants
never meet. A hit also compares the token ids. Where a method shares partly filled pages, a sequence
that is over leaves its last one as well: a prompt that goes on differently inside a page shares
what the two have in common and copies the page at its first write.

The cache holds one reference of each page, as every sequence does. A page that nobody else holds
can be dropped at any time, the one used longest ago first, and a page never before those that
continue it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from capax import _native
from capax.files.sha256 import sha256
from capax.kv import KVCache, KVStore, SharedPagesCache

_ROOT_TAG = b"capax prefix 1 root"
_PAGE_TAG = b"capax prefix 1 page"
_MAX_SIBLINGS = 16  # pages looked at for one that agrees in part


@dataclass(slots=True, eq=False)
class _Block:
    """A page: the tokens it holds, and the blocks known to continue it."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]  # of a whole page, or fewer for the last page of a sequence
    page: int
    children: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class PrefixCache:
    """Pages by content; stays empty for a store without shared pages.

    Not thread-safe: the engine's lock guards it.
    """

    def __init__(self, store: KVStore) -> None:
        self._shared_pages = store.shared_pages
        self._page_tokens = store.page_tokens
        self._takes_partial = store.shares_partial_pages
        # In the order in which they may go: a page stands before the one it continues.
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._beginnings: dict[bytes, OrderedDict[bytes, None]] = {}  # root -> first pages

    @property
    def _pool(self) -> _native.PagePool:
        assert self._shared_pages is not None  # there are no blocks without
        return self._shared_pages

    # --- finding ------------------------------------------------------------------------

    def take(self, namespace: str, tokens: Sequence[int], cache: KVCache) -> None:
        """Give the empty `cache` the longest known prefix of `tokens`, the last one left out."""
        if self._shared_pages is None or not isinstance(cache, SharedPagesCache):
            return
        limit = len(tokens) - 1  # the last token's logits are wanted
        key = root_key(namespace)
        used = []
        n = 0
        size = self._page_tokens
        while n + size <= limit:
            part = tuple(tokens[n : n + size])
            block = self._blocks.get(page_key(key, part))
            if block is None or block.tokens != part:
                break
            used.append(block)
            key = block.key
            n += size
        partial, shared = None, 0
        if self._takes_partial:
            partial, shared = self._best_partial(key, tokens[n : min(n + size, limit)])
        if partial is not None:
            used.append(partial)
            n += shared
        if used:
            cache.adopt([block.page for block in used], n)
        self._touch(used)

    def _best_partial(self, key: bytes, tokens: Sequence[int]) -> tuple[_Block | None, int]:
        """Return the page after `key` that agrees with most of `tokens`, and how many."""
        best, most = None, 0
        siblings = self._siblings(key)
        for child, _ in zip(reversed(siblings), range(_MAX_SIBLINGS), strict=False):
            block = self._blocks[child]
            n = _common(block.tokens, tokens)
            if n > most:
                best, most = block, n
        return best, most

    # --- keeping ------------------------------------------------------------------------

    def keep(
        self, namespace: str, tokens: Sequence[int], cache: KVCache, *, partial: bool = False
    ) -> None:
        """Keep the full pages of `cache`, which holds a prefix of `tokens`.

        Where a page of the same content is known, the cache is given that one instead of its
        own. `partial` also keeps the last page; nobody may write to it any more.
        """
        if self._shared_pages is None or not isinstance(cache, SharedPagesCache):
            return
        key = root_key(namespace)
        used = []
        table = cache.page_table
        size, n_tokens = self._page_tokens, cache.n_shareable
        for i in range(-(-n_tokens // size)):
            part = tuple(tokens[i * size : min((i + 1) * size, n_tokens)])
            if len(part) < size and not (partial and self._takes_partial):
                break
            child = page_key(key, part)
            block = self._blocks.get(child)
            if block is None:
                block = self._add(key, child, part, int(table[i]))
            elif block.page != table[i] and len(part) == size:
                cache.replace_page(i, block.page)
            used.append(block)
            key = child
        self._touch(used)

    def _add(self, parent: bytes, key: bytes, tokens: tuple[int, ...], page: int) -> _Block:
        block = _Block(key, parent, tokens, page)
        self._pool.retain(page)
        self._blocks[key] = block
        self._siblings_of(parent)[key] = None
        return block

    def _touch(self, used: Sequence[_Block]) -> None:
        """Note that these pages, a chain from the first on, were used just now."""
        for block in reversed(used):
            self._blocks.move_to_end(block.key)
            self._siblings_of(block.parent).move_to_end(block.key)

    # --- dropping -----------------------------------------------------------------------

    def evict(self, n_pages: int) -> int:
        """Drop up to `n_pages` pages that nobody else holds; returns how many became free."""
        dropped: list[_Block] = []
        for block in self._blocks.values():
            if len(dropped) == n_pages:
                break
            if self._pool.references(block.page) == 1:
                dropped.append(block)
        for block in dropped:
            self._drop(block)
        return len(dropped)

    def clear(self) -> None:
        """Drop every page."""
        while self._blocks:
            self._drop(next(iter(self._blocks.values())))

    def _drop(self, block: _Block) -> None:
        del self._blocks[block.key]
        siblings = self._siblings_of(block.parent)
        siblings.pop(block.key, None)
        if not siblings and block.parent in self._beginnings:
            del self._beginnings[block.parent]
        self._pool.release(block.page)

    # --- counting -----------------------------------------------------------------------

    @property
    def n_pages(self) -> int:
        """Pages it holds a reference of."""
        return len(self._blocks)

    @property
    def n_evictable(self) -> int:
        """Pages that nobody else holds."""
        return sum(self._pool.references(block.page) == 1 for block in self._blocks.values())

    def pages(self) -> Iterator[int]:
        """Yield the id of every page it holds."""
        for block in self._blocks.values():
            yield block.page

    def _siblings(self, parent: bytes) -> OrderedDict[bytes, None]:
        block = self._blocks.get(parent)
        return block.children if block else self._beginnings.get(parent, _NOTHING)

    def _siblings_of(self, parent: bytes) -> OrderedDict[bytes, None]:
        block = self._blocks.get(parent)
        if block is not None:
            return block.children
        return self._beginnings.setdefault(parent, OrderedDict())


_NOTHING: OrderedDict[bytes, None] = OrderedDict()


def root_key(namespace: str) -> bytes:
    """Return the key before the first page of a namespace."""
    return _digest(_ROOT_TAG, namespace.encode())


def page_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the key of a page that continues `parent` with `tokens`."""
    return _digest(_PAGE_TAG, parent, np.array(tokens, "<i4").tobytes())


def _digest(*parts: bytes) -> bytes:
    """SHA-256 of the parts, each after its length: no two lists of parts look alike."""
    digest = sha256()
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
