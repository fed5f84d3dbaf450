"""Plain quantised caches: uniform codes of keys and values, as everybody knows them.

`kivi` (Liu et al., 2024, arXiv 2402.02750): keys have a few channels much larger than the others,
values do not. So keys are quantised per channel, over the tokens of a block, and values per token.
`keys=pre` quantises keys before their rotary embedding and rotates them while reading, which is how
KVQuant (Hooper et al., 2024, arXiv 2401.18079) takes keys, here with uniform steps and no outliers
set apart. `keys_axis=token` and `hadamard=true` are per-token quantisation as in llama.cpp, without
and with a Hadamard rotation of the channels that spreads outliers.

    z = min, s = (max - min) / (2^bits - 1), both in f16;   q = round((x - z) / s);   x^ = q s + z

Keeps: per layer and KV head and block, codes bit-packed, one (s, z) per channel and block (4 bytes)
or per token and group of channels (4 bytes); the tokens of the last, unfinished block exactly, f16.
Costs: one pass over a block when it is full; decoding a page of codes once for all query heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from capax import _native
from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.coded import CodedStore, coded_footprint
from capax.kv.store import KVFootprint
from capax.methods import Chosen, Method, register

Axis = Literal["channel", "token"]
BITS = (2, 3, 4, 8)
BLOCKS = (64, 128)


@dataclass(frozen=True)
class KiviCache:
    """Options of the plain quantised cache.

    `group`: channels of one token that share a scale; a head at most, None: the largest multiple
    of 16 up to 128 that divides it. `base_layers` first layers have `base_bits`.
    `exact_window=false` reads every token from codes, its own block too: to measure codes with.
    """

    bits: int = 4
    block: int = 128
    group: int | None = None
    keys: Literal["post", "pre"] = "post"
    keys_axis: Axis = "channel"
    values_axis: Axis = "token"
    hadamard: bool = False
    base_layers: int = 0
    base_bits: int = 4
    exact_window: bool = True

    def __post_init__(self) -> None:
        for name in ("bits", "base_bits"):
            if getattr(self, name) not in BITS:
                raise ConfigError(f"kivi:{name} is {getattr(self, name)}; use 2, 3, 4 or 8")
        if self.block not in BLOCKS:
            raise ConfigError(f"kivi:block is {self.block}; use 64 or 128 tokens")
        if self.group is not None and self.group < 1:
            raise ConfigError(f"kivi:group is {self.group}; it is a number of channels")
        if self.base_layers < 0:
            raise ConfigError(f"kivi:base_layers is {self.base_layers}; use 0 or more")

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return the bytes of its code pages and exact windows."""
        footprint = coded_footprint(config, self.codec(config), lag=self.lag)
        bits = sum(self._bits(config))
        return replace(footprint, codes=2 * bits * config.d_kv * self.block // 8)

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> CodedStore:
        """Return a store of `n_pages` blocks."""
        return self.store(model.config, n_pages)

    def store(self, config: ModelConfig, n_pages: int) -> CodedStore:
        name = str(Chosen(METHOD, self))
        return CodedStore(config, self.codec(config), n_pages, name, lag=self.lag)

    @property
    def lag(self) -> int:
        return 0 if self.exact_window else -1

    def codec(self, config: ModelConfig) -> _native.UniformCodec:
        """Return what makes the codes of a model. Raises ConfigError if its heads do not fit."""
        bits = self._bits(config)
        dim = config.head_dim
        try:
            return _native.UniformCodec(
                bits,
                bits,
                config.n_kv_heads,
                dim,
                dim,
                self.block,
                self.keys_axis == "token",
                self.values_axis == "token",
                self.group or _widest_group(dim),
                self.keys == "pre",
                self.hadamard,
            )
        except ValueError as e:
            raise ConfigError(f"kivi does not fit this model: {e}") from None

    def _bits(self, config: ModelConfig) -> list[int]:
        return [
            max(self.bits, self.base_bits) if layer < self.base_layers else self.bits
            for layer in range(config.n_layers)
        ]


def _widest_group(dim: int) -> int:
    if dim <= 128:
        return dim
    return next((g for g in range(128, 0, -16) if dim % g == 0), dim)


METHOD = register(
    Method(
        "kivi",
        "kv",
        "Liu et al., 2024, arXiv 2402.02750",
        "Keep older blocks in 2 to 8 bits: keys per channel, values per token.",
        KiviCache,
    )
)
