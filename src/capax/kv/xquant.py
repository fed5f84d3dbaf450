"""XQuant and XQuant-CL (2025, arXiv 2508.10395): keep layer inputs, rematerialise keys and values.

Idea. Keys and values are both computed from one vector, the layer's normalised input X [t, d].
So keep X in few bits and compute K = X W_k, V = X W_v again whenever attention needs them: half
the numbers of a multi-head cache. With grouped queries X is wider than K and V together; there an
SVD of W_k and W_v gives latents A = X U_k, C = X U_v of just their size. XQuant-CL keeps the
difference to what the layers before have already reconstructed, which the residual stream makes
small: 3 or even 2 bits are enough for it.

Keeps: per layer and block of 128 positions, bit-packed codes of X (per token), or of A (per
channel) and C (per token), or of a delta (per token; latents of it on grouped queries), with one
scale and zero in f16 for each group; the rows of the last, unfinished block in f16. CL besides: one
accumulator [t, d] in f16, of all layers together, and in residual space the rms of each row.
Costs: per cached token, layer and step 4 d d_kv operations from X, 4 d_kv^2 from latents, 8 d d_kv
from latent deltas (see `xquant_cost`); with `absorb_v` fewer. It saves memory, and time only where
reading memory is what takes time. Prefill rematerialises once per chunk of the prompt.

The rule of positions: a query at p reads the token at j from codes iff j // 128 < p // 128, else
from the f16 rows of the window. It depends on positions alone: logits do not depend on chunks.

Left open by the paper, decided here: deltas are taken against the reconstruction as it is stored
(f16), by writer and reader with the same rounding; the base layers of CL keep whole rows also where
deltas are latent (`cl_base=full`); latents and rematerialisation are float32 products; K and V are
made in tiles of 512 positions and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from capax import _native
from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorReader
from capax.kv.quantiser import BLOCK_TOKENS, CODE_BITS, FLOAT_BITS, BlockQuantiser
from capax.kv.store import CountedStore, KVFootprint
from capax.kv.xquant_cache import SPAN_TOKENS, XQuantCache
from capax.kv.xquant_layers import (
    LayerMatrices,
    latent_width,
    layer_matrices,
    matrices_nbytes,
    one_blas_thread,
)
from capax.methods import Chosen, Method, register

MAX_ABSORBED = 1024  # numbers of a row that attention may sum


@dataclass(frozen=True)
class XQuantCaching:
    """Options of XQuant.

    `mode=auto`: X itself if it is narrower than K and V together, else latents. `cross_layer`: keep
    deltas between layers, of X (`cl_space=postnorm`) or of the residual stream. The first
    `base_layers` (none: 3 with `cross_layer`, else 0) have `base_bits`. `group`: channels of a
    token that share a scale. 16 and 32 bits keep f16 and float32 numbers, not codes.
    `exact_window=false` reads every token from codes, to measure them with; `feedback=false` takes
    deltas against the true rows, to see errors add up.
    """

    bits: int = 4
    mode: Literal["auto", "x", "latent"] = "auto"
    cross_layer: bool = False
    cl_space: Literal["postnorm", "residual"] = "postnorm"
    cl_base: Literal["full", "latent"] = "full"
    base_layers: int | None = None
    base_bits: int = 4
    group: int | None = None
    absorb_v: bool = True
    accumulator: Literal["f16", "f32"] = "f16"
    exact_window: bool = True
    feedback: bool = True

    def __post_init__(self) -> None:
        for name in ("bits", "base_bits"):
            if getattr(self, name) not in CODE_BITS + FLOAT_BITS:
                raise ConfigError(
                    f"xquant:{name} is {getattr(self, name)}; use 2, 3, 4, 8, 16 or 32"
                )
        if self.base_layers is not None and self.base_layers < 0:
            raise ConfigError(f"xquant:base_layers is {self.base_layers}; use 0 or more")
        if self.base_layers == 0 and self.cross_layer:
            raise ConfigError("xquant:base_layers is 0; deltas between layers need 1 to begin with")
        if self.group is not None and (self.group < 16 or self.group % 16):
            raise ConfigError(f"xquant:group is {self.group}; use a multiple of 16 channels")
        if not self.cross_layer:
            for f in fields(self):
                if f.name in _OF_DELTAS and getattr(self, f.name) != f.default:
                    raise ConfigError(f"xquant:{f.name} is of no use without cross_layer=true")

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return the bytes of pages (blocks of 128), windows, matrices and what a step works in."""
        layout = XQuantLayout(self, config)
        tiles = layout.tile_pages * layout.tiles.layer_page_nbytes
        state = 4 * config.n_heads * (layout.state_floats + layout.value_width + config.head_dim)
        return KVFootprint(
            page=layout.page_nbytes,
            page_tokens=BLOCK_TOKENS,
            codes=layout.code_nbytes,
            sequence=layout.window_nbytes if self.exact_window else 0,
            shared=matrices_nbytes(config, latent=layout.is_latent, deltas=self.cross_layer)
            + tiles,
            # Old and new window lie side by side in a step; rows of a span become K and V.
            scratch=layout.window_nbytes + 12 * SPAN_TOKENS * (layout.row_width + config.d_kv),
            scratch_token=state + 8 * layout.row_width,
        )

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> XQuantStore:
        """Return room for `n_pages` blocks; decomposes the projections, seconds of work."""
        return XQuantStore(self, model, n_pages)

    def choice(self, config: ModelConfig) -> str:
        """Say what is stored of a model, and why."""
        both = 2 * config.d_kv
        than = "narrower than" if config.d_model < both else "no narrower than"
        reason = f"X has {config.d_model} numbers, {than} K and V together ({both})"
        what = "latents of that width" if self.is_latent(config) else "X itself"
        if self.cross_layer:
            what = f"differences between layers, as {what}"
        return f"xquant keeps {what}: {reason if self.mode == 'auto' else 'mode=' + self.mode}"

    def is_latent(self, config: ModelConfig) -> bool:
        if self.mode == "auto":
            return config.d_model >= 2 * config.d_kv
        return self.mode == "latent"

    def bits_of(self, layer: int) -> int:
        """Return the bits of a layer's codes. Plain floats stay so in the base layers too."""
        return self.base_bits if layer < self.n_base and self.bits in CODE_BITS else self.bits

    @property
    def n_base(self) -> int:
        default = 3 if self.cross_layer else 0
        return default if self.base_layers is None else self.base_layers


_OF_DELTAS = ("cl_space", "cl_base", "accumulator", "feedback")


@dataclass(frozen=True)
class Stream:
    """One kind of vectors in a page: how it is written, and from which byte on."""

    quantiser: BlockQuantiser
    begin: int

    @property
    def part(self) -> slice:
        return slice(self.begin, self.begin + self.quantiser.nbytes)


@dataclass(frozen=True)
class XQuantLayout:
    """Where the parts of a page, a block of 128 positions of all layers, lie.

    | streams of layer 0 | of layer 1 | ... | rms [n_layers][128] | accumulator [128][d_model] |
    """

    options: XQuantCaching
    config: ModelConfig

    @cached_property
    def is_latent(self) -> bool:
        return self.options.is_latent(self.config)

    @cached_property
    def row_width(self) -> int:
        """Numbers of a row as the window keeps it: X or H, or A and C."""
        if self.options.cross_layer or not self.is_latent:
            return self.config.d_model
        return 2 * latent_width(self.config, deltas=False)

    @cached_property
    def row_type(self) -> npt.DTypeLike:
        return np.float32 if self.options.bits == 32 else np.float16

    @cached_property
    def window_nbytes(self) -> int:
        """Bytes of the rows of an unfinished block, all layers."""
        itemsize = np.dtype(self.row_type).itemsize
        return self.config.n_layers * BLOCK_TOKENS * self.row_width * itemsize

    @cached_property
    def streams(self) -> tuple[tuple[Stream, ...], ...]:
        """The streams of each layer."""
        begin, layers = 0, []
        for layer in range(self.config.n_layers):
            streams = []
            for quantiser in self._quantisers(layer):
                streams.append(Stream(quantiser, begin))
                begin += quantiser.nbytes
            layers.append(tuple(streams))
        return tuple(layers)

    def _quantisers(self, layer: int) -> list[BlockQuantiser]:
        o, c = self.options, self.config
        bits = o.bits_of(layer)
        if o.cross_layer:
            width = latent_width(c, deltas=True) if self.codes_latents(layer) else c.d_model
            return [BlockQuantiser(width, bits, "token", o.group)]
        if not self.is_latent:
            return [BlockQuantiser(c.d_model, bits, "token", o.group)]
        width = latent_width(c, deltas=False)
        return [
            BlockQuantiser(width, bits, "channel"),
            BlockQuantiser(width, bits, "token", o.group),
        ]

    def codes_latents(self, layer: int) -> bool:
        """Whether the codes of a layer are of latents of its rows or deltas."""
        is_base = self.options.cross_layer and layer < self.options.n_base
        return self.is_latent and not (is_base and self.options.cl_base == "full")

    @cached_property
    def code_nbytes(self) -> int:
        return sum(s.quantiser.code_nbytes for layer in self.streams for s in layer)

    @cached_property
    def scale_nbytes(self) -> int:
        return sum(s.quantiser.scale_nbytes for layer in self.streams for s in layer)

    @cached_property
    def accumulator_type(self) -> npt.DTypeLike:
        exact = self.options.accumulator == "f32" or self.options.bits == 32
        return np.float32 if exact else np.float16

    @cached_property
    def accumulator_nbytes(self) -> int:
        size = np.dtype(self.accumulator_type).itemsize
        return BLOCK_TOKENS * self.config.d_model * size if self.options.cross_layer else 0

    @cached_property
    def rms_nbytes(self) -> int:
        """Bytes of the root mean squares, without which H cannot be normalised again."""
        if not self.is_residual:
            return 0
        return self.config.n_layers * BLOCK_TOKENS * np.dtype(self.row_type).itemsize

    @property
    def is_residual(self) -> bool:
        return self.options.cross_layer and self.options.cl_space == "residual"

    @cached_property
    def stored_nbytes(self) -> int:
        """Bytes of a page without the accumulator, which any step computes again."""
        return self.code_nbytes + self.scale_nbytes + self.rms_nbytes

    @cached_property
    def page_nbytes(self) -> int:
        return self.stored_nbytes + self.accumulator_nbytes

    @cached_property
    def value_width(self) -> int:
        """Numbers of what attention sums: rows that become values later, or values."""
        return self._summed_width if self.absorbs else self.config.head_dim

    @property
    def _summed_width(self) -> int:
        return self.row_width // 2 if self.is_latent_rows else self.row_width

    @property
    def is_latent_rows(self) -> bool:
        """Whether a row is (A | C)."""
        return self.is_latent and not self.options.cross_layer

    @cached_property
    def absorbs(self) -> bool:
        return self.options.absorb_v and self._summed_width <= MAX_ABSORBED

    @cached_property
    def tiles(self) -> _native.KVLayout:
        """Pages of 64 positions that rematerialised keys and values pass through."""
        c = self.config
        return _native.KVLayout("f32", c.n_kv_heads, c.head_dim, self.value_width)

    @property
    def tile_pages(self) -> int:
        """Of a span, and of one block of it that is read exactly."""
        return (SPAN_TOKENS + BLOCK_TOKENS) // _native.PAGE_TOKENS

    @property
    def state_floats(self) -> int:
        """Of one query head while it attends: m, l and a sum, as `kv_attend_span` wants it."""
        return 16 + -(-self.value_width // 16) * 16


class XQuantStore(CountedStore):
    """The matrices of one model and the room for its sequences' pages."""

    def __init__(self, options: XQuantCaching, model: ModelFile, n_pages: int) -> None:
        super().__init__(options.footprint(model.config), n_pages)
        self.options = options
        self.config = model.config
        self.layout = XQuantLayout(options, model.config)
        self.name = str(Chosen(METHOD, options))
        kind = {
            "latent": self.layout.is_latent,
            "deltas": options.cross_layer,
            "gained": self.layout.is_residual,
        }
        with TensorReader() as reader, one_blas_thread():
            self.matrices: list[LayerMatrices] = [
                layer_matrices(model, reader, layer, **kind)
                for layer in range(model.config.n_layers)
            ]
        shape = self.layout.tile_pages, self.layout.tiles.layer_page_nbytes
        self.tiles: npt.NDArray[np.uint8] = np.zeros(shape, np.uint8)
        measured = sum(m.nbytes for m in self.matrices) + self.tiles.nbytes
        self.nbytes_changed(measured - self.footprint.shared)

    def new(self) -> XQuantCache:
        return XQuantCache(self)


METHOD = register(
    Method(
        "xquant",
        "kv",
        "XQuant, 2025, arXiv 2508.10395",
        "Keep layer inputs in 2 to 8 bits and compute keys and values from them again.",
        XQuantCaching,
    )
)
