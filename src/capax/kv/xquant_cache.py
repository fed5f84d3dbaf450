"""What XQuant does with the tokens of one sequence; `xquant` says why.

Per layer and step: `append` keeps the rows of new tokens and turns blocks that are full now into
codes; `attend` goes through the positions in spans of 512, makes keys and values of a span from
codes (the own block of a query: from exact rows) and merges its part of the attention into the
sums so far.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import StoreError
from capax.kv.cache import AttentionInput, Floats, Positions
from capax.kv.quantiser import BLOCK_TOKENS, Bytes, as_float

if TYPE_CHECKING:
    from capax.kv.xquant import XQuantStore

Rows = npt.NDArray[np.floating]  # as the window keeps them: f16, or float32

SPAN_TOKENS = _native.SPAN_TOKENS
_SPAN_BLOCKS = SPAN_TOKENS // BLOCK_TOKENS
_BLOCK_PAGES = BLOCK_TOKENS // _native.PAGE_TOKENS
_SPAN_PAGES = SPAN_TOKENS // _native.PAGE_TOKENS
_HEADER = struct.Struct("<8sI5qI")  # magic, method (crc32), extents (4), n_tokens, crc32
_MAGIC = b"capaxxq1"


class XQuantCache:
    """A sequence's pages of codes, and the rows of its unfinished block."""

    def __init__(self, store: XQuantStore) -> None:
        self._store = store
        self._layout = store.layout
        self._n_tokens = 0
        self._pages: list[Bytes] = []
        self._window: Rows | None = None  # [n_layers, 128, row_width]: of block n_tokens // 128
        self._next: Rows | None = None  # the same of the block that the step ends in
        self._own: Rows = np.empty((0, 0), np.float16)  # this layer's rows, the window's too
        self._own_before = self._own  # those of the layer before

    @property
    def n_tokens(self) -> int:
        return self._n_tokens

    @property
    def nbytes(self) -> int:
        window = 0 if self._window is None else self._window.nbytes
        return sum(page.nbytes for page in self._pages) + window

    def codes_of(self, block: int) -> Bytes:
        """Return the codes, scales and rms of a full block: uint8, a view."""
        return self._pages[block][: self._layout.stored_nbytes]

    # --- room -----------------------------------------------------------------------------

    def pages_wanted(self, n_new: int) -> int:
        return max(self._store.pages_for(self._n_tokens + n_new) - len(self._pages), 0)

    def reserve(self, n_new: int) -> None:
        if not self._store.options.exact_window and n_new % BLOCK_TOKENS:
            raise ValueError(
                f"xquant without an exact window takes whole blocks of {BLOCK_TOKENS} tokens at a "
                f"time, not {n_new}"
            )
        wanted = self.pages_wanted(n_new)
        self._store.take(wanted)
        nbytes = self._layout.page_nbytes
        self._pages += [np.zeros(nbytes, np.uint8) for _ in range(wanted)]
        self._store.nbytes_changed(wanted * nbytes)
        if self._window is None and self._store.options.exact_window:
            self._window = self._new_window()
            self._store.nbytes_changed(self._window.nbytes)

    def _new_window(self) -> Rows:
        shape = len(self._store.matrices), BLOCK_TOKENS, self._layout.row_width
        return np.zeros(shape, self._layout.row_type)

    # --- writing --------------------------------------------------------------------------

    def append(self, layer: int, inputs: AttentionInput, positions: Positions) -> None:
        begin = int(positions[0])
        first, end = begin // BLOCK_TOKENS, begin + len(positions)
        rows = as_float(self._rows_of(layer, inputs), self._layout.row_type)
        if self._window is not None:
            rows = np.concatenate([self._window[layer, : begin % BLOCK_TOKENS], rows])
        self._own_before, self._own = self._own, rows
        self._rotate = inputs.rotate
        for block in range(first, end // BLOCK_TOKENS):
            at = slice((block - first) * BLOCK_TOKENS, (block - first + 1) * BLOCK_TOKENS)
            self._encode(layer, block, at)
        self._keep_unfinished(layer, rows[(end // BLOCK_TOKENS - first) * BLOCK_TOKENS :], begin)

    def _rows_of(self, layer: int, inputs: AttentionInput) -> Floats:
        if self._layout.is_residual:
            return inputs.h()
        x = inputs.x()
        if not self._layout.is_latent_rows:
            return x
        return np.concatenate([u.matmul(x) for u in self._store.matrices[layer].down], axis=1)

    def _keep_unfinished(self, layer: int, rows: Rows, begin: int) -> None:
        """Put the rows of the block that is not full where the next step looks for them.

        What a step that crosses into another block replaces stays as it is until it is over.
        """
        if not len(rows) or self._window is None:
            return
        if len(self._own) > BLOCK_TOKENS:
            self._next = self._new_window() if self._next is None else self._next
            self._next[layer, : len(rows)] = rows
        else:
            self._window[layer, : len(rows)] = rows

    def _encode(self, layer: int, block: int, at: slice) -> None:
        """Write the codes of a block whose rows are `_own[at]`."""
        page, rows = self._pages[block], self._own[at].astype(np.float32)
        streams = self._layout.streams[layer]
        if not self._store.options.cross_layer:
            for stream, part in zip(streams, np.split(rows, len(streams), axis=1), strict=True):
                stream.quantiser.encode(part, page[stream.part])
            return
        if self._layout.is_residual:
            mean = np.mean(rows.astype(np.float64) ** 2, axis=1)
            rms = np.sqrt(mean + self._store.config.norm_eps)
            self._rms(page)[layer] = as_float(rms, self._layout.row_type)
        if layer >= self._store.options.n_base:
            rows = rows - self._reconstructed(page, at)
        if self._layout.codes_latents(layer):
            rows = self._store.matrices[layer].down[0].matmul(rows)
        streams[0].quantiser.encode(rows, page[streams[0].part])
        self._accumulate(layer, page, self._accumulator(page))

    def _reconstructed(self, page: Bytes, at: slice) -> Floats:
        """What a delta is taken against: never the true rows, or errors would add up."""
        if self._store.options.feedback:
            return self._accumulator(page).astype(np.float32)
        return self._own_before[at].astype(np.float32)

    # --- reading --------------------------------------------------------------------------

    def attend(self, layer: int, q: Floats, positions: Positions) -> Floats:
        layout, config = self._layout, self._store.config
        begin, end = int(positions[0]), int(positions[-1]) + 1
        first, last = begin // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS
        n_coded = last if self._store.options.exact_window else last + 1
        window = config.window_of(layer) or 0
        state = np.zeros((*q.shape[:2], layout.state_floats), np.float32)
        for span in range(last // _SPAN_BLOCKS + 1):
            is_seen = not window or (span + 1) * SPAN_TOKENS > begin + 1 - window
            blocks = range(span * _SPAN_BLOCKS, min((span + 1) * _SPAN_BLOCKS, n_coded))
            # Every accumulator goes on from layer to layer, seen or not.
            if is_seen or self._store.options.cross_layer:
                rows = [self._read(layer, block) for block in blocks]
            if not is_seen:
                continue
            if blocks:
                self._fill(layer, 0, np.concatenate(rows), blocks.start)
            for a, b in _query_blocks(span, begin, end):
                pages = np.arange(_SPAN_PAGES, dtype=np.int32)
                block = a // BLOCK_TOKENS
                if self._store.options.exact_window and block // _SPAN_BLOCKS == span:
                    self._fill(layer, _SPAN_PAGES, self._exact(layer, block, first), block)
                    own = block % _SPAN_BLOCKS * _BLOCK_PAGES
                    pages[own : own + _BLOCK_PAGES] = range(_SPAN_PAGES, _SPAN_PAGES + _BLOCK_PAGES)
                _native.kv_attend_span(
                    layout.tiles, self._store.tiles, pages, q[a - begin : b - begin], a,
                    config.attention_scale, window, span, state[a - begin : b - begin],
                )  # fmt: skip
        summed, weight = state[:, :, 16 : 16 + layout.value_width], state[:, :, 1:2]
        sums = np.divide(summed, weight, dtype=np.float32)
        return self._store.matrices[layer].values_of_sums(sums) if layout.absorbs else sums

    def _read(self, layer: int, block: int) -> Floats:
        """Return the rows of a full block from its codes: [128, row_width]."""
        page = self._pages[block]
        if not self._store.options.cross_layer:
            streams = self._layout.streams[layer]
            return np.concatenate([s.quantiser.decode(page[s.part]) for s in streams], axis=1)
        accumulator = self._accumulator(page)
        if block < self._n_tokens // BLOCK_TOKENS:  # else `append` did it in this step
            self._accumulate(layer, page, accumulator)
        return self._normalised(layer, page, accumulator.astype(np.float32))

    def reconstruct(self, layer: int, block: int) -> Rows:
        """Return the accumulator of a full block after a layer, from codes alone: [128, d]."""
        page = self._pages[block]
        accumulator = np.zeros_like(self._accumulator(page))
        for before in range(layer + 1):
            self._accumulate(before, page, accumulator)
        return accumulator

    def _accumulate(self, layer: int, page: Bytes, accumulator: Rows) -> None:
        """Go on from the layer before to this one; writer and reader round alike."""
        stream = self._layout.streams[layer][0]
        rows = stream.quantiser.decode(page[stream.part])
        if self._layout.codes_latents(layer):
            up = self._store.matrices[layer].up
            assert up is not None  # latents of deltas
            rows = up.matmul(rows)
        if layer >= self._store.options.n_base:
            rows += accumulator
        accumulator[:] = as_float(rows, accumulator.dtype)

    def _normalised(self, layer: int, page: Bytes, rows: Floats) -> Floats:
        if not self._layout.is_residual:
            return rows
        gain = self._store.matrices[layer].gain
        rms = self._rms(page)[layer, :, None].astype(np.float32)
        normalised: Floats = np.divide(rows * gain, rms, dtype=np.float32)
        return normalised

    def _exact(self, layer: int, block: int, first: int) -> Floats:
        """Return the rows of a block as the window has them: [n <= 128, row_width]."""
        begin = (block - first) * BLOCK_TOKENS
        rows = self._own[begin : begin + BLOCK_TOKENS].astype(np.float32)
        if not self._layout.is_residual:
            return rows
        gain = self._store.matrices[layer].gain
        return _native.rms_norm(rows, gain, self._store.config.norm_eps)

    def _fill(self, layer: int, page: int, rows: Floats, block: int) -> None:
        """Rematerialise keys and values of rows from a block on, into tiles from a page on."""
        config, matrices = self._store.config, self._store.matrices[layer]
        k_rows = v_rows = rows
        if self._layout.is_latent_rows:
            k_rows, v_rows = (np.ascontiguousarray(part) for part in np.split(rows, 2, axis=1))
        n, begin = len(rows), block * BLOCK_TOKENS
        at = np.arange(begin, begin + n, dtype=np.int32)
        k = self._rotate(matrices.keys(k_rows), at).reshape(n, config.n_kv_heads, config.head_dim)
        if self._layout.absorbs:  # every head sums the rows themselves
            v = np.repeat(v_rows[:, None], config.n_kv_heads, axis=1)
        else:
            v = matrices.values(v_rows)
        pages = np.arange(page, page + -(-n // _native.PAGE_TOKENS), dtype=np.int32)
        _native.kv_append(self._layout.tiles, self._store.tiles, 0, pages, k, v, 0)

    def _accumulator(self, page: Bytes) -> Rows:
        part = page[self._layout.stored_nbytes :]
        return part.view(self._layout.accumulator_type).reshape(BLOCK_TOKENS, -1)

    def _rms(self, page: Bytes) -> Rows:
        layout = self._layout
        part = page[layout.stored_nbytes - layout.rms_nbytes : layout.stored_nbytes]
        return part.view(layout.row_type).reshape(-1, BLOCK_TOKENS)

    # --- the life of a sequence -----------------------------------------------------------

    def advance(self, n_new: int) -> None:
        before, self._n_tokens = self._n_tokens, self._n_tokens + n_new
        if self._next is not None and before // BLOCK_TOKENS != self._n_tokens // BLOCK_TOKENS:
            self._window = self._next
        self._next = None
        self._own = self._own_before = self._own[:0]

    def truncate(self, n_tokens: int) -> None:
        if not 0 <= n_tokens <= self._n_tokens:
            raise ValueError(f"cannot truncate {self._n_tokens} tokens to {n_tokens}")
        block = n_tokens // BLOCK_TOKENS
        if n_tokens % BLOCK_TOKENS and block != self._n_tokens // BLOCK_TOKENS:
            begin = block * BLOCK_TOKENS
            raise ValueError(
                f"cannot truncate {self._n_tokens} tokens to {n_tokens}: of the tokens from "
                f"{begin} on only codes are left; compute them again from {begin} on"
            )
        self._n_tokens = n_tokens
        self._shrink(self._store.pages_for(n_tokens))

    def _shrink(self, n_pages: int) -> None:
        surplus = len(self._pages) - n_pages
        if surplus > 0:
            del self._pages[n_pages:]
            self._store.give_back(surplus)
            self._store.nbytes_changed(-surplus * self._layout.page_nbytes)

    def fork(self) -> Self:
        twin = type(self)(self._store)
        wanted = len(self._pages)
        self._store.take(wanted)
        twin._pages = [page.copy() for page in self._pages]
        twin._window = None if self._window is None else self._window.copy()
        twin._n_tokens = self._n_tokens
        self._store.nbytes_changed(twin.nbytes)
        return twin

    def close(self) -> None:
        self._n_tokens = 0
        self._shrink(0)
        if self._window is not None:
            self._store.nbytes_changed(-self._window.nbytes)
        self._window = self._next = None

    def __del__(self) -> None:
        if hasattr(self, "_own_before"):
            self.close()

    # --- records --------------------------------------------------------------------------

    def export(self) -> bytes:
        n_full, n_open = divmod(self._n_tokens, BLOCK_TOKENS)
        parts = [self.codes_of(block).tobytes() for block in range(n_full)]
        if self._window is not None:
            parts.append(self._window[:, :n_open].tobytes())
        content = b"".join(parts)
        return _HEADER.pack(*self._identity(), self._n_tokens, zlib.crc32(content)) + content

    def _identity(self) -> tuple[bytes, int, int, int, int, int]:
        c = self._store.config
        name = zlib.crc32(self._store.name.encode())
        return _MAGIC, name, c.n_layers, c.d_model, c.d_kv, self._layout.stored_nbytes

    def load(self, content: bytes) -> None:
        if len(content) < _HEADER.size:
            raise StoreError(f"a KV record of {len(content)} bytes has no header")
        *identity, n_tokens, crc = _HEADER.unpack_from(content)
        if tuple(identity) != self._identity():
            raise StoreError("the KV record belongs to another model, method, layout or version")
        body = memoryview(content)[_HEADER.size :]
        n_full, n_open = divmod(max(n_tokens, 0), BLOCK_TOKENS)
        nbytes = self._layout.stored_nbytes
        expected = n_full * nbytes + n_open * (self._layout.window_nbytes // BLOCK_TOKENS)
        if n_tokens < 0 or len(body) != expected:
            raise StoreError(
                f"the KV record has {len(body)} bytes for {n_tokens} tokens, not {expected}"
            )
        if zlib.crc32(body) != crc:
            raise StoreError("the KV record is damaged: its checksum does not match")
        fresh = type(self)(self._store)
        fresh.reserve(n_tokens)
        for block in range(n_full):
            fresh.codes_of(block)[:] = np.frombuffer(body, np.uint8, nbytes, block * nbytes)
        if n_open and fresh._window is not None:
            rows = np.frombuffer(body, self._layout.row_type, offset=n_full * nbytes)
            fresh._window[:, :n_open] = rows.reshape(len(fresh._window), n_open, -1)
        self.close()
        self._pages, fresh._pages = fresh._pages, []
        self._window, fresh._window = fresh._window, None
        self._n_tokens, fresh._n_tokens = n_tokens, 0


def _query_blocks(span: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Cut the queries [begin, end) that read a span: those in it by block, then the others."""
    begin, span_end = max(begin, span * SPAN_TOKENS), min((span + 1) * SPAN_TOKENS, end)
    cuts = [begin, *range((begin // BLOCK_TOKENS + 1) * BLOCK_TOKENS, span_end, BLOCK_TOKENS)]
    cuts = [cut for cut in cuts if cut < span_end]
    cuts += [max(begin, span_end)] if span_end < end else []
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], end], strict=True) if a < b]
