"""A cache that holds at most `memory + buffer` tokens of a layer and KV head, whatever the text.

Eviction methods differ in one thing: which entries they give up. A method's policy scores the
entries; this file holds them. When every head has `memory + buffer` of them, each keeps the
`memory` with the highest scores, moved together in place; heads may keep different tokens. That is
after positions memory + buffer - 1, then every `buffer`: a function of positions alone, so neither
survivors nor logits depend on how a prompt is cut into chunks.

Keeps: per layer and KV head, K (rotated at the original position) and V in f16 as the full cache
does, the position int32 and, where the method has one, a number float32. Bytes of a sequence:
    n_layers * n_kv_heads * (memory + buffer) * (2 * head_dim * 2 + 4 or 8)
with memory + buffer rounded up to whole pages of 64 for K and V; the default buffer fills the page.
Exact (bit-identical to `full`) until memory + buffer tokens are there. Of equal scores the older
entry goes. What was given up is gone: `truncate` refuses to go back behind it.
"""

from __future__ import annotations

import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import ConfigError, StoreError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.cache import AttentionInput, Floats, Positions
from capax.kv.paged import PAGE_TOKENS, pages_for
from capax.kv.store import CountedStore, KVFootprint

Scores = npt.NDArray[np.float32] | npt.NDArray[np.float64]

MAX_ENTRIES = 1 << 20
_LEAST_BUFFER = 16
_TYPE = "f16"
_EXPORT_HEADER = struct.Struct("<8s6qI")  # magic, layout (5), n_tokens, crc32 of the arrays
_EXPORT_MAGIC = b"capaxbd1"


@dataclass(frozen=True, slots=True)
class Entries:
    """What one layer holds when some of it must go.

    `positions`: int32 [n_kv_heads, n], ascending in a head; `numbers`: what the policy noted of
    each, float32 [n_kv_heads, n], zeros if it notes nothing; `now`: the last position seen.
    """

    layer: int
    positions: Positions
    numbers: Floats
    now: int


class Policy(ABC):
    """Which entries a method keeps, and what it notes of each, if it does: a number.

    `watches`: of the queries between two times that entries are dropped, how many of the last add
    the attention that they give to an entry to its number. `carries`: the number goes on counting
    afterwards, else it begins at 0 again.
    """

    carries: ClassVar[bool] = True
    watches: int = 0

    def written(self, layer: int, inputs: AttentionInput) -> Floats | None:
        """Return the first number of each new entry, float32 [n_kv_heads, t], or None for 0."""
        return None

    @abstractmethod
    def scores(self, entries: Entries) -> Scores:
        """Return how much each entry is worth keeping: [n_kv_heads, n]."""


@dataclass(frozen=True, kw_only=True)
class BoundedMethod(ABC):
    """Options of every bounded cache: entries kept, and how many more until some are dropped.

    `buffer`: none fills the last page of 64 entries, with 16 at least.
    """

    notes: ClassVar[bool] = False  # whether its policy has a number for each entry
    memory: int = 128
    buffer: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.memory <= MAX_ENTRIES:
            raise ConfigError(f"memory={self.memory:,} is not in 1..{MAX_ENTRIES:,}")
        if self.buffer is not None and not 1 <= self.buffer <= MAX_ENTRIES:
            raise ConfigError(f"buffer={self.buffer:,} is not in 1..{MAX_ENTRIES:,}")

    @property
    def n_entries(self) -> int:
        """The most entries of a head: memory + buffer."""
        if self.buffer is not None:
            return self.memory + self.buffer
        return pages_for(self.memory + _LEAST_BUFFER) * PAGE_TOKENS

    @abstractmethod
    def policy(self, model: ModelFile) -> Policy:
        """Return what decides. Raises ConfigError if it does not fit the model."""

    def shared_nbytes(self, config: ModelConfig) -> int:
        """Return the bytes that all sequences share."""
        return 0

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return the bytes of a sequence, all in one page, and of what it works in.

        Raises ConfigError for a model whose layers look at a window of positions.
        """
        if any(config.window_of(layer) for layer in range(config.n_layers)):
            raise ConfigError(
                "a bounded cache forgets tokens by its own rule and this model's layers by theirs "
                "(sliding window); use another KV cache, for example kv=int8"
            )
        group = config.n_heads // config.n_kv_heads
        n = self.n_entries
        return KVFootprint(
            page=_Arrays.nbytes_of(config, n, self.notes),
            page_tokens=n,
            max_pages=1,
            shared=self.shared_nbytes(config),
            scratch=4 * n * (group * n + 2 * config.d_kv) if self.notes else 8 * n * config.d_kv,
        )

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> BoundedStore:
        """Return room for `n_pages` sequences."""
        return BoundedStore(self, model.config, self.policy(model), n_pages)


class BoundedStore(CountedStore):
    """The bounded caches of one model: one page is the whole cache of a sequence."""

    def __init__(
        self, method: BoundedMethod, config: ModelConfig, policy: Policy, n_pages: int
    ) -> None:
        super().__init__(method.footprint(config), n_pages)
        self.config, self.policy, self.notes = config, policy, method.notes
        self.memory, self.n_entries = method.memory, method.n_entries

    def new(self) -> BoundedCache:
        return BoundedCache(self)


@dataclass(slots=True)
class _Arrays:
    """The memory of one sequence.

    `pool`: pages of 64 entries over all layers; `positions`, `numbers`: [n_layers, n_kv_heads,
    n_entries], `numbers` without entries if the policy notes none.
    """

    pool: npt.NDArray[np.uint8]
    positions: Positions
    numbers: Floats

    @classmethod
    def empty(cls, config: ModelConfig, n_entries: int, notes: bool) -> Self:
        page = _layout(config).layer_page_nbytes * config.n_layers
        heads = config.n_layers, config.n_kv_heads
        return cls(
            np.zeros((pages_for(n_entries), page), np.uint8),
            np.zeros((*heads, n_entries), np.int32),
            np.zeros((*heads, n_entries if notes else 0), np.float32),
        )

    @classmethod
    def nbytes_of(cls, config: ModelConfig, n_entries: int, notes: bool) -> int:
        page = _layout(config).layer_page_nbytes * config.n_layers
        extra = config.n_layers * config.n_kv_heads * n_entries * (8 if notes else 4)
        return pages_for(n_entries) * page + extra

    def copy(self) -> _Arrays:
        return _Arrays(self.pool.copy(), self.positions.copy(), self.numbers.copy())

    def parts(self) -> tuple[npt.NDArray[np.generic], ...]:
        return self.pool, self.positions, self.numbers


@dataclass(frozen=True, slots=True)
class _Written:
    """New tokens of a layer between `append` and `attend`: k, v [t, n_kv_heads, head_dim]."""

    k: Floats
    v: Floats
    numbers: Floats | None


class BoundedCache:
    """One sequence's entries. `append` notes the new tokens, `attend` writes and sorts out.

    A chunk goes through a layer in pieces that end where entries are dropped, so that a token
    sees what it would see if tokens came one by one.
    """

    def __init__(self, store: BoundedStore) -> None:
        self._store = store
        self._layout = _layout(store.config)
        self._n_tokens = 0
        self._seen = [0] * store.config.n_layers  # tokens that each layer has taken in
        self._arrays: _Arrays | None = None
        self._written: _Written | None = None
        self._table = np.arange(pages_for(store.n_entries), dtype=np.int32)

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def nbytes(self) -> int:
        return self._store.footprint.page if self._arrays is not None else 0

    def n_kept(self, n_tokens: int | None = None) -> int:
        """Return how many entries each head holds after `n_tokens` (None: now)."""
        n = self._n_tokens if n_tokens is None else n_tokens
        store = self._store
        if n < store.n_entries:
            return n
        return store.memory + (n - store.memory) % (store.n_entries - store.memory)

    def kept(self, layer: int) -> Positions:
        """Return the positions whose tokens a layer still holds: int32 [n_kv_heads, n], a copy."""
        if self._arrays is None:
            return np.zeros((self._store.config.n_kv_heads, 0), np.int32)
        return self._arrays.positions[layer, :, : self.n_kept()].copy()

    def pages_wanted(self, n_new: int) -> int:
        return int(self._arrays is None and self._n_tokens + n_new > 0)

    def reserve(self, n_new: int) -> None:
        wanted = self.pages_wanted(n_new)
        if not wanted:
            return
        store = self._store
        store.take(wanted)
        try:
            self._arrays = _Arrays.empty(store.config, store.n_entries, store.notes)
        except MemoryError:
            store.give_back(wanted)
            raise
        store.nbytes_changed(self.nbytes)

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        if int(positions[0]) != self._seen[layer]:
            raise ValueError(
                f"layer {layer} has seen {self._seen[layer]} tokens and is given position "
                f"{int(positions[0])}: a step that failed half way cannot be repeated here"
            )
        c = self._store.config
        shape = len(positions), c.n_kv_heads, c.head_dim
        k = inputs.rotate(inputs.k, positions).reshape(shape)
        v = np.array(inputs.v, np.float32).reshape(shape)
        self._written = _Written(k, v, self._store.policy.written(layer, inputs))

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        written, self._written = self._written, None
        assert written is not None  # append came first
        if len(q) == 1:
            return self._step(layer, q, written, slice(0, 1))
        out = np.empty_like(q)
        begin = 0
        while begin < len(q):
            room = self._store.n_entries - self.n_kept(self._seen[layer])
            end = min(begin + room, len(q))
            rows = slice(begin, end)
            out[rows] = self._step(layer, q[rows], written, rows)
            begin = end
        return out

    def _step(self, layer: int, q: Floats, written: _Written, rows: slice) -> Floats:
        """Take in some rows of the new tokens, attend for them, and drop entries if it is time."""
        arrays, store, c = self._memory, self._store, self._store.config
        first = self._seen[layer]
        held = self.n_kept(first)
        n = len(q)
        place = self._layout, arrays.pool, layer * self._layout.layer_page_nbytes, self._table
        _native.kv_append(*place, written.k[rows], written.v[rows], held)
        arrays.positions[layer, :, held : held + n] = np.arange(first, first + n, dtype=np.int32)
        if store.notes:
            new = written.numbers
            arrays.numbers[layer, :, held : held + n] = 0 if new is None else new[:, rows]
        out = _native.kv_attend(*place, q, held, c.attention_scale, 0)
        if store.policy.watches:
            unwatched = max(store.n_entries - store.policy.watches - held, 0)
            if unwatched < n:
                queries = np.ascontiguousarray(q[unwatched:])
                numbers = arrays.numbers[layer]
                _native.kv_add_attention(
                    *place, queries, held + unwatched, c.attention_scale, numbers
                )
        self._seen[layer] = first + n
        if held + n == store.n_entries:
            self._drop(layer)
        return out

    def _drop(self, layer: int) -> None:
        """Keep the `memory` entries of each head with the highest scores, in order of time."""
        arrays, store = self._memory, self._store
        policy = store.policy
        entries = Entries(
            layer, arrays.positions[layer], arrays.numbers[layer], self._seen[layer] - 1
        )
        keep = best(policy.scores(entries), store.memory)
        offset = layer * self._layout.layer_page_nbytes
        _native.kv_keep(self._layout, arrays.pool, offset, self._table, keep, store.n_entries)
        for row in (arrays.positions[layer], arrays.numbers[layer])[: 1 + store.notes]:
            row[:, : store.memory] = np.take_along_axis(row, keep, axis=1)
        if store.notes and not policy.carries:
            arrays.numbers[layer] = 0

    @property
    def _memory(self) -> _Arrays:
        assert self._arrays is not None  # reserve came first
        return self._arrays

    def advance(self, n_new: int) -> None:
        self._n_tokens += n_new

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._n_tokens:
            raise ValueError(f"cannot truncate {self._n_tokens} tokens to {n_tokens}")
        oldest = self._n_tokens - (self.n_kept() - self._store.memory)
        if self._n_tokens >= self._store.n_entries and 0 < n_tokens < oldest:
            raise ValueError(
                f"cannot truncate {self._n_tokens} tokens to {n_tokens}: entries were dropped at "
                f"{oldest} tokens and are gone; compute the sequence again"
            )
        if n_tokens != self._n_tokens and n_tokens and self._store.policy.watches:
            raise ValueError(
                f"cannot truncate {self._n_tokens} tokens to {n_tokens}: what the later ones "
                "attended to is counted already; compute the sequence again"
            )
        self._n_tokens = n_tokens
        self._seen = [n_tokens] * len(self._seen)
        if n_tokens == 0 and self._arrays is not None:
            self._store.nbytes_changed(-self.nbytes)
            self._arrays = None
            self._store.give_back(1)

    def fork(self) -> Self:
        twin = type(self)(self._store)
        twin.reserve(self._n_tokens)
        if twin._arrays is not None:
            twin._arrays = self._memory.copy()
        twin._n_tokens, twin._seen = self._n_tokens, list(self._seen)
        return twin

    def export(self) -> bytes:
        arrays = (
            b"" if self._arrays is None else b"".join(a.tobytes() for a in self._memory.parts())
        )
        return self._header(self._n_tokens, zlib.crc32(arrays)) + arrays

    def load(self, content: bytes) -> None:
        size = _EXPORT_HEADER.size
        if len(content) < size:
            raise StoreError(f"a KV record of {len(content)} bytes has no header")
        *layout, n_tokens, crc = _EXPORT_HEADER.unpack_from(content)
        if tuple(layout) != _EXPORT_HEADER.unpack(self._header(0, 0))[:-2]:
            raise StoreError("the KV record belongs to another model, method or version")
        expected = self._store.footprint.page if n_tokens else 0
        if n_tokens < 0 or len(content) - size != expected:
            raise StoreError(
                f"the KV record has {len(content) - size} bytes of entries, not {expected}"
            )
        if zlib.crc32(memoryview(content)[size:]) != crc:
            raise StoreError("the KV record is damaged: its checksum does not match")
        self.reserve(n_tokens)
        for array in self._memory.parts() if n_tokens else ():
            flat = array.reshape(-1).view(np.uint8)
            flat[:] = np.frombuffer(content, np.uint8, flat.nbytes, size)
            size += flat.nbytes
        self._n_tokens = n_tokens
        self._seen = [n_tokens] * len(self._seen)

    def close(self) -> None:
        self.truncate(0)

    def __del__(self) -> None:
        if getattr(self, "_arrays", None) is not None:
            self.close()

    def _header(self, n_tokens: int, crc: int) -> bytes:
        c, store = self._store.config, self._store
        kind = store.memory << 24 | store.n_entries
        notes = int(store.notes)
        layout = kind, c.n_layers, c.n_kv_heads, c.head_dim, notes
        return _EXPORT_HEADER.pack(_EXPORT_MAGIC, *layout, n_tokens, crc)


def best(scores: Scores, n: int) -> Positions:
    """Return the entries of each head with the n highest scores: int32 [n_kv_heads, n], ascending.

    Of equal scores the later ones stay; a score that is not a number goes first.
    """
    order = np.argsort(np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf),
                       axis=1, kind="stable")  # fmt: skip
    kept = np.sort(order[:, scores.shape[1] - n :], axis=1)
    return np.ascontiguousarray(kept, np.int32)


def recent(entries: Entries, n: int) -> npt.NDArray[np.bool_]:
    """Return which entries are of the last n positions: [n_kv_heads, n_entries]."""
    return entries.positions > entries.now - n


def _layout(config: ModelConfig) -> _native.KVLayout:
    return _native.KVLayout(_TYPE, config.n_kv_heads, config.head_dim, config.head_dim)
