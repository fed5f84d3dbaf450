"""Landmark Attention (Mohtashami and Jaggi, 2023, arXiv 2305.16300).

Idea. A model trained for it closes every block of tokens with a landmark, whose key scores high
for queries to which the block is worth reading. A query reads what is near plainly; of everything
older it reads the `k` blocks whose landmarks score best, as if they stood just before what is near.
Keeps: all K and V, [block, head_dim] float32 per block, layer and KV head, keys not rotated, in
memory or in a file; landmark keys once more in one matrix per layer.
Costs: per query and head n_blocks scores, and at most k * block + chunk keys.
Exact when k >= n_blocks: equal to landmark attention over everything.

Positions are cut into chunks of `chunk` tokens, landmarks counted, at fixed places of the sequence.
A query reads its own chunk up to itself, and chooses among the blocks before the chunk. So what a
query reads depends on its position alone and not on how tokens are fed (but for granularity
"head", which chooses once for all queries of a feed in one chunk). With chunk <= window - (k + 1) *
block no two things a query compares are further apart than the model was trained for:

    positions:   | old blocks: all here | the last k blocks      | chunk                     |
                 0                   block                (k + 1) * block           < window

Old blocks are all scored at the one place before the last k; chosen ones are packed, in their
order, to the right end of the places before the chunk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import ConfigError, StoreError
from capax.files.config import LandmarkConfig, ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.cache import AttentionInput, Floats, Inserted, Positions, Rotary
from capax.kv.landmark_store import BlockRegion, Where
from capax.kv.store import CountedStore, KVFootprint
from capax.methods import Method, register

Ints = npt.NDArray[np.int32]
Granularity = Literal["head_token", "token", "head"]
Index = Literal["landmark", "mean", "random"]

BLOCKS_PER_PAGE = 16
MAX_BLOCKS = 1 << 24
MAX_K = 4096
_NOTHING = -1  # no chunk is in place
_ROWS_AT_ONCE = 16  # queries whose chosen blocks lie in scratch together

_HEADER = struct.Struct("<8s6qI")  # magic, layout (5), rows, crc32 of what follows
_MAGIC = b"capaxlm1"


@dataclass(frozen=True)
class LandmarkAttention:
    """The options.

    `k`: blocks a query chooses. `granularity`: who chooses: every head of every token, every token
    for all heads by the best of their probabilities, or every head for all tokens of a feed in one
    chunk. `max_blocks`: forget the oldest blocks beyond so many. `chunk`: 0 for the largest that
    keeps positions inside the training window; a longer one is allowed and leaves it. `offload`
    "mmap": keep blocks in a file. `index` "mean" puts the mean of a block's keys in the place of
    its landmark's, "random" chooses blindly: the controls.
    """

    k: int = 4
    granularity: Granularity = "head_token"
    max_blocks: int | None = None
    chunk: int = 0
    offload: Where = "ram"
    index: Index = "landmark"

    def __post_init__(self) -> None:
        if not 0 <= self.k <= MAX_K:
            raise ConfigError(f"landmark k is {self.k}; 0 to {MAX_K:,} blocks can be chosen")
        if self.max_blocks is not None and not 1 <= self.max_blocks <= MAX_BLOCKS:
            raise ConfigError(
                f"landmark max_blocks is {self.max_blocks}; 1 to {MAX_BLOCKS:,} can be kept"
            )
        if self.chunk < 0:
            raise ConfigError(f"landmark chunk is {self.chunk}; 0 chooses it")

    def geometry(self, config: ModelConfig) -> Geometry:
        """Return the sizes for a model. Raises ConfigError if they do not fit it."""
        trained = config.landmark
        if trained is None:
            raise ConfigError(
                "landmark attention needs a model that was trained with landmarks "
                "(landmark.block in its config.json): this one was not; use another KV cache, "
                "or train one with 'capax train landmark'"
            )
        if config.sliding_window is not None:
            raise ConfigError("landmark attention and a sliding window exclude each other")
        if config.rope is not None and config.rope.scaling != "none":
            raise ConfigError(
                f"landmark attention needs positions as they are; this model stretches them "
                f"({config.rope.scaling})"
            )
        before = (self.k + 1) * trained.block
        chunk = self.chunk or (trained.window - before) // trained.block * trained.block
        if chunk < trained.block:
            raise ConfigError(
                f"landmark k={self.k} leaves no room for a chunk: {before} places of the training "
                f"window of {trained.window} are for blocks of {trained.block}; lower k"
            )
        if chunk % trained.block:
            raise ConfigError(
                f"landmark chunk is {chunk}; it must be a multiple of the block, {trained.block}"
            )
        return Geometry(trained, self.k, chunk, self.max_blocks)

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Bytes of what lies in memory; blocks in a file are not counted."""
        g = self.geometry(config)
        row = config.n_layers * config.d_kv * 4
        kept = 1 if self.offload == "mmap" else 2 * g.block + 1  # rows per block
        n_chosen = self.k * config.n_heads * (_ROWS_AT_ONCE if self.granularity != "head" else 1)
        most = None
        if self.max_blocks is not None:
            most = -(-(self.max_blocks + g.chunk // g.block) // BLOCKS_PER_PAGE)
        return KVFootprint(
            page=BLOCKS_PER_PAGE * kept * row,
            page_tokens=BLOCKS_PER_PAGE * (g.block - 1),
            max_pages=most,
            sequence=3 * g.chunk * row,
            scratch=n_chosen * 2 * g.block * config.head_dim * 4,
        )

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> LandmarkStore:
        """Return memory for the caches of one model."""
        return LandmarkStore(model.config, self, n_pages)


class Geometry(NamedTuple):
    """Sizes in tokens, landmarks counted, and the places that follow from them.

    `n_blocks` is always how many blocks are kept before a chunk.
    """

    trained: LandmarkConfig
    k: int
    chunk: int
    max_blocks: int | None

    @property
    def block(self) -> int:
        return self.trained.block

    def blocks_before(self, row: int) -> tuple[int, int]:
        """Return the first block that is kept before the chunk of `row`, and how many are."""
        n = row // self.chunk * (self.chunk // self.block)
        first = 0 if self.max_blocks is None else max(0, n - self.max_blocks)
        return first, n - first

    def origin(self, n_blocks: int) -> int:
        """Return the place of a chunk's first token: behind those it may choose and one more."""
        return (min(self.k, n_blocks) + 1) * self.block

    def places(self, first: int, n: int) -> Positions:
        """Return where rows `first`.. of the stream stand, as queries and as keys."""
        places = np.arange(first, first + n, dtype=np.int32) % np.int32(self.chunk)
        edges = [first, *range((first // self.chunk + 1) * self.chunk, first + n, self.chunk)]
        for begin, end in zip(edges, [*edges[1:], first + n], strict=True):
            places[begin - first : end - first] += self.origin(self.blocks_before(begin)[1])
        return places

    @lru_cache(maxsize=8)  # noqa: B019  # of a named tuple of numbers; all layers ask the same
    def landmark_places(self, n_blocks: int) -> Ints:
        """Return where the landmarks of the blocks before a chunk are scored: int32 [n_blocks]."""
        age = np.minimum(np.arange(n_blocks, 0, -1), min(self.k, n_blocks) + 1)
        return (self.origin(n_blocks) - age * self.block + self.block - 1).astype(np.int32)

    def bases(self, chosen: npt.NDArray[np.intp], n_blocks: int) -> Ints:
        """Return where the first tokens of blocks stand that were chosen of `n_blocks`.

        `chosen`: [..., n_recent] block numbers, ascending. Rank r of the chosen ones stands at
        (n_recent - r) blocks before the chunk if it is one of the last, one further if it is old.
        """
        n_recent = chosen.shape[-1]
        is_old = chosen < n_blocks - n_recent
        ages = n_recent - np.arange(n_recent) + is_old
        places: Ints = (self.origin(n_blocks) - ages * self.block).astype(np.int32)
        return places


@dataclass
class Work:
    """What was read, over all caches of a store: counts since it was opened.

    `most_keys`: the most keys one query and head read; `keys`, `queries`: their sum over heads and
    layers, and how many there were. `fetched_nbytes`: records copied for reading. `most_distance`:
    the largest distance of positions compared.
    """

    most_keys: int = 0
    keys: int = 0
    queries: int = 0
    fetched_nbytes: int = 0
    most_distance: int = 0


class LandmarkStore(CountedStore):
    """The options and sizes that the caches of one model share, and their work."""

    def __init__(self, config: ModelConfig, options: LandmarkAttention, n_pages: int) -> None:
        super().__init__(options.footprint(config), n_pages)
        self.config = config
        self.options = options
        self.geometry = options.geometry(config)
        self.work = Work()
        # Told every choice, for measurements: (layer, blocks [t, n_heads, k']).
        self.on_choice: Callable[[int, npt.NDArray[np.intp]], None] | None = None

    @property
    def max_slots(self) -> int:
        """Blocks one sequence has room for."""
        pages = self.footprint.max_pages
        return BLOCKS_PER_PAGE * (self.capacity if pages is None else pages)

    def new(self) -> LandmarkCache:
        """Return an empty cache; it takes memory when tokens come."""
        return LandmarkCache(self)


class LandmarkCache:
    """One sequence. Rows are tokens of the stream, landmarks counted."""

    def __init__(self, store: LandmarkStore) -> None:
        self._store = store
        self._n_rows = 0
        self._n_pages = 0
        self._region: BlockRegion | None = None
        # Rows of the chunk that is being filled, per layer [n_kv_heads, chunk, head_dim]: keys as
        # they came, keys at their places, values; and which chunk that is.
        self._raw = self._k = self._v = np.empty((0, 0, 0, 0), np.float32)
        self._held = [0] * store.config.n_layers
        self._new: tuple[Floats, Floats, Rotary] | None = None

    # --- what the engine asks ---------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        return self._n_rows - self._n_rows // self._store.geometry.block

    @property
    def nbytes(self) -> int:
        extras = 0 if self._region is None else self._store.footprint.sequence
        return self._n_pages * self._store.footprint.page + extras

    def pages_wanted(self, n_new: int) -> int:
        return max(0, self._store.pages_for(self.n_tokens + n_new) - self._n_pages)

    def reserve(self, n_new: int) -> None:
        wanted = self.pages_wanted(n_new)
        if wanted == 0:
            return
        self._store.take(wanted)
        begin = self._n_pages * BLOCKS_PER_PAGE
        try:
            self._opened().back(begin, begin + wanted * BLOCKS_PER_PAGE)
        except BaseException:
            self._store.give_back(wanted)
            raise
        self._n_pages += wanted
        self._store.nbytes_changed(wanted * self._store.footprint.page)

    def _opened(self) -> BlockRegion:
        if self._region is None:
            c, g = self._store.config, self._store.geometry
            self._region = BlockRegion(
                n_layers=c.n_layers,
                n_slots=self._store.max_slots,
                n_kv_heads=c.n_kv_heads,
                block=g.block,
                head_dim=c.head_dim,
                where=self._store.options.offload,
            )
            shape = c.n_layers, c.n_kv_heads, g.chunk, c.head_dim
            self._raw, self._k, self._v = (np.zeros(shape, np.float32) for _ in range(3))
            self._store.nbytes_changed(self._store.footprint.sequence)
        return self._region

    def insert(self, tokens: Positions) -> Inserted:
        """Put a landmark behind every token that completes a block."""
        g = self._store.geometry
        own = self.n_tokens + np.arange(len(tokens))
        rows = own + own // (g.block - 1) - self._n_rows
        end = self.n_tokens + len(tokens)
        n_read = end + end // (g.block - 1) - self._n_rows
        stream = np.full(n_read, g.trained.token_id, np.int32)
        stream[rows] = tokens
        return Inserted(stream, rows.astype(np.int32), g.places(self._n_rows, n_read))

    def advance(self, n_new: int) -> None:
        self._n_rows += n_new
        if self._region is not None:
            self._region.drop_mapped()

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self.n_tokens:
            raise ValueError(f"cannot truncate {self.n_tokens} tokens to {n_tokens}")
        g = self._store.geometry
        n_rows = n_tokens + n_tokens // (g.block - 1)
        is_lost = g.blocks_before(self._n_rows)[0] > 0
        if is_lost and n_rows // g.chunk < self._n_rows // g.chunk:
            raise ValueError(
                f"cannot truncate {self.n_tokens} tokens to {n_tokens}: "
                "blocks before were forgotten"
            )
        self._n_rows = n_rows
        surplus = self._n_pages - self._store.pages_for(n_tokens)
        if surplus > 0 and self._region is not None:
            self._n_pages -= surplus
            begin = self._n_pages * BLOCKS_PER_PAGE
            self._region.release(begin, begin + surplus * BLOCKS_PER_PAGE)
            self._store.give_back(surplus)
            self._store.nbytes_changed(-surplus * self._store.footprint.page)

    def close(self) -> None:
        if self._region is not None:
            self._region.close()
            self._store.nbytes_changed(-self.nbytes)
            self._store.give_back(self._n_pages)
        self.__init__(self._store)  # type: ignore[misc]  # as new

    # --- what a layer asks ------------------------------------------------------------------

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        """Take the rows' keys as they are: at position 0 rotation changes nothing."""
        assert inputs.rotary is not None  # the model gives its tables
        c = self._store.config
        shape = len(positions), c.n_kv_heads, c.head_dim
        plain = inputs.rotate(inputs.k, np.zeros(len(positions), np.int32)).reshape(shape)
        self._new = plain.swapaxes(0, 1), inputs.v.reshape(shape).swapaxes(0, 1), inputs.rotary

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        """Attend chunk by chunk; a chunk that is full becomes blocks."""
        assert self._new is not None  # `append` came before
        k, v, rotary = self._new
        chunk = self._store.geometry.chunk
        out = np.empty_like(q)
        begin = 0
        while begin < len(q):
            at = (self._n_rows + begin) % chunk
            n = min(chunk - at, len(q) - begin)
            index = (self._n_rows + begin) // chunk
            self._hold(layer, index, at, rotary)
            rows, places = slice(begin, begin + n), slice(at, at + n)
            self._raw[layer, :, places], self._v[layer, :, places] = k[:, rows], v[:, rows]
            self._k[layer, :, places] = self._rotated(
                self._raw[layer, :, places], index * chunk + at, rotary
            )
            out[rows] = self._attend_chunk(layer, np.ascontiguousarray(q[rows]), index, at, rotary)
            if at + n == chunk:
                self._store_chunk(layer, index, chunk)
            begin += n
        self._new = None
        return out

    def _rotated(self, k: Floats, row: int, rotary: Rotary) -> Floats:
        """Return keys [n_kv_heads, n, head_dim] of rows `row`.. of the stream at their places."""
        places = self._store.geometry.places(row, k.shape[1])
        by_token = np.ascontiguousarray(k.swapaxes(0, 1))
        turned = _native.rope(by_token, rotary.cos[places], rotary.sin[places], rotary.style)
        return turned.swapaxes(0, 1)

    def _attend_chunk(self, layer: int, q: Floats, index: int, at: int, rotary: Rotary) -> Floats:
        """Return the outputs of the rows `at`.. of chunk `index`."""
        store = self._store
        g, options = store.geometry, store.options
        first, n_blocks = g.blocks_before(index * g.chunk)
        rows = np.arange(at, at + len(q), dtype=np.int32)
        n_at_once = len(q) if options.granularity == "head" else _ROWS_AT_ONCE
        out = np.empty_like(q)
        common: npt.NDArray[np.intp] | None = None
        if options.granularity == "head":
            common = self._chosen(layer, q, first, n_blocks, index * g.chunk + at, rotary)
        for begin in range(0, len(q), n_at_once):
            part = slice(begin, begin + n_at_once)
            row = index * g.chunk + at + begin
            chosen = common
            if chosen is None:
                chosen = self._chosen(layer, q[part], first, n_blocks, row, rotary)
            if store.on_choice is not None:
                store.on_choice(layer, chosen + first)
            records, slots = self._fetched(layer, chosen + first)
            bases = g.bases(chosen, n_blocks)
            out[part], n_read = _native.landmark_attend(
                q[part],
                rows[part],
                self._k[layer],
                self._v[layer],
                records,
                slots,
                bases,
                store.config.attention_scale,
                rotary.cos,
                rotary.sin,
                rotary.style,
                g.block,
            )
            self._count(n_read, records, rows[part], bases, n_blocks)
        return out

    # --- choosing (section 3.2 of the paper) ------------------------------------------------

    def _chosen(
        self, layer: int, q: Floats, first: int, n_blocks: int, row: int, rotary: Rotary
    ) -> npt.NDArray[np.intp]:
        """Return the blocks each query head reads: [t, n_heads, k'], of 0 .. n_blocks - 1.

        `row`: of the first query; the blind choice depends on nothing else.
        """
        t, n_heads, _ = q.shape
        k = min(self._store.geometry.k, n_blocks)
        if k in (0, n_blocks):  # there is nothing to choose
            return np.broadcast_to(np.arange(k), (t, n_heads, k))
        if self._store.options.index == "random":
            draws = [
                np.random.default_rng((layer, row + i)).random((n_heads, n_blocks))
                for i in range(t)
            ]
            return best_blocks(np.stack(draws).astype(np.float32), k, "head_token")
        scores = self._scores(layer, q, first, n_blocks, rotary)
        return best_blocks(scores, k, self._store.options.granularity)

    def _scores(self, layer: int, q: Floats, first: int, n_blocks: int, rotary: Rotary) -> Floats:
        """Return the scores of the blocks' landmarks: [t, n_heads, n_blocks]."""
        assert self._region is not None
        landmarks = self._region.landmarks[layer]
        places = self._store.geometry.landmark_places(n_blocks)
        parts = []
        for begin, end in _runs(first, n_blocks, self._store.max_slots):
            slot = (first + begin) % self._store.max_slots
            parts.append(
                _native.landmark_scores(
                    q,
                    landmarks if slot == 0 else np.ascontiguousarray(landmarks[:, slot:]),
                    places[begin:end],
                    self._store.config.attention_scale,
                    rotary.cos,
                    rotary.sin,
                    rotary.style,
                )
            )
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _fetched(self, layer: int, blocks: npt.NDArray[np.intp]) -> tuple[Floats, Ints]:
        """Return the records of chosen blocks, each once, and which one each choice is."""
        assert self._region is not None
        c = self._store.config
        heads = np.arange(c.n_heads) // (c.n_heads // c.n_kv_heads)
        wanted = (blocks % self._store.max_slots) * c.n_kv_heads + heads[:, None]
        different, which = np.unique(wanted, return_inverse=True)
        records = self._region.read(layer, different // c.n_kv_heads, different % c.n_kv_heads)
        if self._store.options.index == "mean":
            records[:, 0, -1] = records[:, 0, :-1].mean(axis=1)
        return records, which.reshape(wanted.shape).astype(np.int32)

    # --- chunks and blocks ------------------------------------------------------------------

    def _store_chunk(self, layer: int, index: int, n_rows: int) -> None:
        """Write the blocks that hold the first `n_rows` rows of the chunk in place."""
        g = self._store.geometry
        for i in range(-(-n_rows // g.block)):
            slot = (index * (g.chunk // g.block) + i) % self._store.max_slots
            rows = slice(i * g.block, (i + 1) * g.block)
            self._write(layer, slot, self._raw[layer, :, rows], self._v[layer, :, rows])

    def _write(self, layer: int, slot: int, k: Floats, v: Floats) -> None:
        assert self._region is not None
        is_mean = self._store.options.index == "mean"
        self._region.write(layer, slot, k, v, k[:, :-1].mean(axis=1) if is_mean else k[:, -1])

    def _hold(self, layer: int, index: int, n_rows: int, rotary: Rotary) -> None:
        """Make sure that the first `n_rows` rows of chunk `index` are in place for a layer.

        They lie in blocks after a step that failed behind the chunk's end, or a truncation.
        """
        if self._held[layer] != index and n_rows > 0:  # else there is nothing to bring
            assert self._region is not None
            g = self._store.geometry
            n_blocks = -(-n_rows // g.block)
            slots = (index * (g.chunk // g.block) + np.arange(n_blocks)) % self._store.max_slots
            records = self._region.records[layer, slots]  # [n, n_kv_heads, 2, block, head_dim]
            rows = np.moveaxis(records, 0, 2)  # [n_kv_heads, 2, n, block, head_dim]
            rows = rows.reshape(*rows.shape[:2], -1, rows.shape[-1])
            n = rows.shape[2]
            self._raw[layer, :, :n], self._v[layer, :, :n] = rows[:, 0], rows[:, 1]
            self._k[layer, :, :n] = self._rotated(self._raw[layer, :, :n], index * g.chunk, rotary)
        self._held[layer] = index

    def _count(
        self, n_read: Ints, records: Floats, rows: Positions, bases: Ints, n_blocks: int
    ) -> None:
        work, g = self._store.work, self._store.geometry
        work.keys += int(n_read.sum())
        work.queries += n_read.size
        work.most_keys = max(work.most_keys, int(n_read.max(initial=0)))
        work.fetched_nbytes += records.nbytes
        origin = g.origin(n_blocks)
        furthest = int(bases.min(initial=origin))
        if n_blocks > g.k > 0:  # landmarks were scored
            furthest = min(furthest, origin - g.k * g.block - 1)
        work.most_distance = max(work.most_distance, origin + int(rows[-1]) - furthest)

    # --- copies -----------------------------------------------------------------------------

    def fork(self) -> Self:
        twin = type(self)(self._store)
        twin.reserve(self.n_tokens)
        if self._region is not None:
            twin._fill(self._n_rows, self._blocks())
        return twin

    def export(self) -> bytes:
        content = b"" if self._region is None else self._blocks().tobytes()
        return _HEADER.pack(_MAGIC, *self._layout(), self._n_rows, zlib.crc32(content)) + content

    def load(self, content: bytes) -> None:
        if len(content) < _HEADER.size or content[: len(_MAGIC)] != _MAGIC:
            raise StoreError(f"{len(content):,} bytes are not a stored landmark cache")
        _, *layout, n_rows, checksum = _HEADER.unpack_from(content)
        if tuple(layout) != self._layout():
            raise StoreError(
                f"a stored landmark cache is of another model or chunk: {layout} instead of "
                f"{list(self._layout())}"
            )
        c, block = self._store.config, self._store.geometry.block
        values = memoryview(content)[_HEADER.size :]
        n_slots = len(self._slots(n_rows)) if n_rows >= 0 else -1
        shape = c.n_layers, n_slots, c.n_kv_heads, 2, block, c.head_dim
        if n_slots < 0 or len(values) != 4 * int(np.prod(shape)) or zlib.crc32(values) != checksum:
            raise StoreError("a stored landmark cache is damaged")
        fresh = type(self)(self._store)
        fresh.reserve(n_rows - n_rows // block)
        if n_rows:
            fresh._fill(n_rows, np.frombuffer(values, np.float32).reshape(shape))
        self.close()
        self.__dict__ = fresh.__dict__

    def _layout(self) -> tuple[int, int, int, int, int]:
        c, g = self._store.config, self._store.geometry
        return c.n_layers, c.n_kv_heads, c.head_dim, g.block, g.chunk

    def _slots(self, n_rows: int) -> npt.NDArray[np.intp]:
        """Return the slots of all blocks kept at row `n_rows`, the unfinished chunk's included."""
        g = self._store.geometry
        first, _ = g.blocks_before(n_rows)
        return np.arange(first, -(-n_rows // g.block)) % self._store.max_slots

    def _blocks(self) -> Floats:
        """Return all kept records: [n_layers, n, n_kv_heads, 2, block, head_dim], a copy."""
        assert self._region is not None
        chunk = self._store.geometry.chunk
        index, n = divmod(self._n_rows, chunk)
        for layer, held in enumerate(self._held):
            if held == index:
                self._store_chunk(layer, index, n)
        found: Floats = self._region.records[:, self._slots(self._n_rows)]
        return found

    def _fill(self, n_rows: int, blocks: Floats) -> None:
        assert self._region is not None
        for layer, records in enumerate(blocks):
            for slot, record in zip(self._slots(n_rows), records, strict=True):
                self._write(layer, int(slot), record[:, 0], record[:, 1])
        self._n_rows = n_rows
        self._held = [_NOTHING] * len(self._held)


def best_blocks(scores: Floats, k: int, granularity: Granularity) -> npt.NDArray[np.intp]:
    """Return the `k` best blocks in ascending order: [t, n_heads, k] of scores [t, n_heads, n].

    Heads and tokens that choose together compare the probabilities of their softmax over blocks.
    """
    t, n_heads, n = scores.shape
    if granularity != "head_token":
        scores = _native.softmax(np.ascontiguousarray(scores))
        scores = scores.max(axis=1 if granularity == "token" else 0, keepdims=True)
    best = np.sort(np.argpartition(scores, n - k, axis=-1)[..., n - k :], axis=-1)
    return np.broadcast_to(best, (t, n_heads, k))


def _runs(first: int, n: int, n_slots: int) -> list[tuple[int, int]]:
    """Return the parts of blocks first .. first + n - 1, from 0, that lie in a row of slots."""
    cut = min(n, n_slots - first % n_slots)
    return [(0, cut)] if cut == n else [(0, cut), (cut, n)]


METHOD = register(
    Method(
        "landmark",
        "kv",
        "arXiv:2305.16300",
        "blocks of an unbounded history, chosen by trained landmark tokens",
        LandmarkAttention,
    )
)
