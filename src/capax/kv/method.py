"""Choosing a KV method by its spelling.

The options of a method, a frozen dataclass that `capax.methods` reads from a spelling such as
'xquant:bits=4', are the method: they say what a run will hold (`footprint`) and open the memory
that its sequences share (`open`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.paged import KV_TYPES, FullCache
from capax.kv.store import KVFootprint, KVStore
from capax.methods import Chosen, parse_method, registered

# Short names: precisions of the full cache, llama.cpp's word for one, and the usual four bits.
ALIASES: dict[str, str] = {
    **{kv_type: f"full:type={kv_type}" for kv_type in KV_TYPES},
    "q8_0": "full:type=int8",
    "int4": "kivi:bits=4",
}


class KVMethod(Protocol):
    """The options of a method."""

    def footprint(self, config: ModelConfig) -> KVFootprint:
        """Return its bytes for a model. Raises ConfigError if it cannot work with that model."""
        ...

    def open(self, model: ModelFile, n_pages: int, n_running: int) -> KVStore:
        """Return memory for `n_pages` pages and the extras of `n_running` sequences at once."""
        ...


def parse_kv(spec: str) -> Chosen:
    """Return the method that `spec` chooses: 'f16', 'int8', 'full:type=bf16', 'xquant:bits=4'.

    Raises ConfigError, naming what is wrong and what there is.
    """
    if not isinstance(spec, str):
        raise ConfigError(f"KV cache {spec!r:.60} is not a method's name")
    spec = ALIASES.get(spec.strip(), spec.strip())
    name = spec.partition(":")[0]
    if name != "full":  # which needs no other method's import
        names = [method.name for method in registered("kv")]
        if name not in names:
            raise ConfigError(
                f"KV cache {spec!r:.60} is unknown; use one of {', '.join(ALIASES)} "
                f"or a method: {', '.join(names)} (see 'capax methods')"
            )
    return parse_method("kv", spec)


def kv_name(spec: str) -> str:
    """Return the one spelling of what `spec` chooses: a precision alone for the full cache."""
    chosen = parse_kv(spec)
    if isinstance(chosen.options, FullCache):
        return chosen.options.type
    return str(chosen)


@lru_cache(maxsize=64)
def kv_method(spec: str) -> KVMethod:
    """Return the method that `spec` chooses, to plan with and to open."""
    method: KVMethod = parse_kv(spec).options
    return method
