"""MILLION: product quantisation of the KV cache (Wang et al., 2025, arXiv 2504.03661).

Idea. Low-bit uniform codes suffer from the few channels of keys that are much larger than the
others. Here a head vector is cut into M short sub-vectors, and each is replaced by the number of
its nearest centroid in a codebook fitted beforehand ('capax kv fit'): an outlier has centroids of
its own, and no scales are kept, so b bits per number really are b bits.

    encode  code[m] = argmin_c |x_m - C_K[m, c]|^2     one block of 64 positions when it is full
    score   s_t = sum_m q_m . C_K[m, code_K(t, m)]
    value   o = sum_t p_t [C_V[0, code_V(t, 0)], C_V[1, code_V(t, 1)], ...]

Keeps: 2 * M * bits / 8 bytes per token and KV head (M may differ between keys and values); the
block that is being filled exactly, in f16; the codebooks once.
Costs: 2^bits distances per number of a token when its block is full; while reading, one look-up
per sub-vector for all query heads of a group. Keys never lie decoded in memory.

Ours differs from the paper: a query at p reads the token at j from codes iff
j // 64 + lag < p // 64, in prefill as in decode, so logits do not depend on chunks or on prefix
reuse (the paper reads a prompt exactly and then encodes all of it). lag=1 is its asynchronous
encoding: the work for a block is spread over the steps of the next one, and two blocks are kept
exactly. Codebooks may be one per layer or head; the paper's is one for all (`--scope merged`).
`score=vector` adds the products of a score along the whole vector: with AVX-512 the codebook itself
is the look-up table, in registers, and yields keys. `score=subspace` adds them within sub-vectors
first, which is how a table of q . centroid per query head, the paper's, adds them; `score=table` is
the same, from such tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from capax import _native
from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.digest import weights_digest
from capax.files.model_file import ModelFile
from capax.kv.codebook import (
    Bits,
    Codebook,
    Header,
    Shape,
    bfloat16_bits,
    load_codebook,
    read_header,
)
from capax.kv.coded import CodedStore, coded_footprint
from capax.kv.store import KVFootprint
from capax.methods import Chosen, Method, register

Score = Literal["vector", "subspace", "table"]
BLOCK_TOKENS = 64
_EXACT = -1


@dataclass(frozen=True)
class Million:
    """Options of the product-quantised cache.

    `codebook`: a file that 'capax kv fit' made for this model. `subspaces`, `bits`: of keys, and
    `v_subspaces`, `v_bits` of values; the file decides them, and a different number is refused.
    `skip_layers`: layers kept exactly, as in '0+1+29'. `lag`: whole blocks before its own that a
    token reads exactly. `exact_window=false` reads every token from codes, its own block too: to
    measure codebooks with. `window`: what exact positions are kept in. `score`: the order in
    which the products of a score are added.
    """

    codebook: str
    subspaces: int | None = None
    bits: int | None = None
    v_subspaces: int | None = None
    v_bits: int | None = None
    skip_layers: str = ""
    lag: int = 0
    exact_window: bool = True
    window: Literal["f16", "bf16", "f32"] = "f16"
    score: Score = "vector"

    def __post_init__(self) -> None:
        if not self.codebook:
            raise ConfigError("million:codebook is empty; make one by 'capax kv fit' and name it")
        if self.lag not in (0, 1):
            raise ConfigError(f"million:lag is {self.lag}; use 0 or 1")
        if self.lag and not self.exact_window:
            raise ConfigError("million:lag=1 keeps a window and exact_window=false has none")
        if not re.fullmatch(r"(\d{1,5}(\+\d{1,5})*)?", self.skip_layers):
            raise ConfigError(
                f"million:skip_layers is {self.skip_layers!r:.60}; write layers as in 0+1+29"
            )

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return the bytes of code pages, exact windows and codebooks.

        Raises ConfigError or FileFormatError if the codebook file does not fit the model.
        """
        header = self._header(config)
        codec = self._codec(_blank_codebook(header, config))
        return coded_footprint(
            config, codec, lag=self._lag, exact=self.window, shared=codec.books_nbytes
        )

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> CodedStore:
        """Return a store of `n_pages` blocks. Raises as `footprint`, and for another model."""
        self._header(model.config)
        digest = weights_digest(model).hex()
        return self.store(load_codebook(Path(self.codebook), model.config, digest), model, n_pages)

    def store(self, book: Codebook, model: ModelFile, n_pages: int) -> CodedStore:
        """Return a store of `n_pages` blocks with codebooks at hand."""
        codec = self._codec(book)
        name = f"{Chosen(METHOD, self)} {book.digest}"
        return CodedStore(
            model.config,
            codec,
            n_pages,
            name,
            lag=self._lag,
            exact=self.window,
            shared=codec.books_nbytes,
        )

    @property
    def _lag(self) -> int:
        return self.lag if self.exact_window else -1

    def _header(self, config: ModelConfig) -> Header:
        header = read_header(Path(self.codebook), config)
        for option, found in (
            ("subspaces", header.k_shape.n_subspaces),
            ("bits", header.k_shape.bits),
            ("v_subspaces", header.v_shape.n_subspaces),
            ("v_bits", header.v_shape.bits),
        ):
            wanted = getattr(self, option)
            if wanted is not None and wanted != found:
                raise ConfigError(
                    f"million:{option} is {wanted} and the codebook {self.codebook} has {found}; "
                    f"leave it out, or fit another codebook by 'capax kv fit'"
                )
        return header

    def _codec(self, book: Codebook) -> _native.PQCodec:
        n_heads = book.n_kv_heads
        skipped = {int(layer) for layer in self.skip_layers.split("+") if layer}
        if skipped and max(skipped) >= book.n_layers:
            raise ConfigError(
                f"million:skip_layers names layer {max(skipped)}; the model has layers 0 to "
                f"{book.n_layers - 1}"
            )
        books = [
            _EXACT if layer in skipped else book.book_of(layer, head)
            for layer in range(book.n_layers)
            for head in range(n_heads)
        ]
        try:
            return _native.PQCodec(
                list(book.k),
                list(book.v),
                books,
                books,
                n_heads,
                book.head_dim,
                book.head_dim,
                BLOCK_TOKENS,
                self.score != "vector",
                self.score == "table",
            )
        except ValueError as e:
            raise ConfigError(f"{self.codebook}: {e}; fit it again by 'capax kv fit'") from None


def _blank_codebook(header: Header, config: ModelConfig) -> Codebook:
    """Centroids of the right shapes and no content, to count bytes with."""

    def blank(shape: Shape) -> tuple[Bits, ...]:
        centroids = np.zeros(shape.book, np.float32)
        centroids[0, -1] = np.nan
        return (bfloat16_bits(centroids),) * header.n_books

    return Codebook(
        model="",
        scope=header.scope,
        n_layers=config.n_cache_layers,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        k_shape=header.k_shape,
        v_shape=header.v_shape,
        k=blank(header.k_shape),
        v=blank(header.v_shape),
        facts={},
    )


METHOD = register(
    Method(
        "million",
        "kv",
        "Wang et al., 2025, arXiv 2504.03661",
        "Keep older blocks as codes into codebooks fitted to the model: 1 to 6 bits per number.",
        Million,
    )
)
