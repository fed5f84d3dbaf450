"""What retention gates have learned: half-lives of tokens, and which of a text survive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capax.files.model_file import open_model
from capax.kv.bounded import BoundedCache, BoundedStore
from capax.kv.cache import Floats
from capax.kv.retention_gates import RetentionGates, read_gates
from capax.kv.trim import Trim, TrimPolicy
from capax.models import Model, ModelTensors, SequenceSlice, Step

_CHUNK = 256


@dataclass(frozen=True)
class RetentionReport:
    """`half_lives`: of each token, in tokens: ln 0.5 / ln beta, float64 [n_layers, n_kv_heads, T].

    `survivors`: the positions that each head still holds after the text, by layer:
    int32 [n_kv_heads, n_kept].
    """

    half_lives: npt.NDArray[np.float64]
    survivors: list[npt.NDArray[np.int32]]

    @property
    def n_tokens(self) -> int:
        return int(self.half_lives.shape[2])

    def survival(self, n_bins: int) -> npt.NDArray[np.float64]:
        """Return the share of each layer's entries, over all heads, by position: [n_layers, bins].

        A bin's share is of the tokens in it.
        """
        edges = np.linspace(0, self.n_tokens, n_bins + 1)
        counts = np.array([np.histogram(s, edges)[0] for s in self.survivors], np.float64)
        n_heads = len(self.survivors[0])
        width: npt.NDArray[np.float64] = np.histogram(np.arange(self.n_tokens), edges)[0] * n_heads
        shares: npt.NDArray[np.float64] = counts / np.maximum(width, 1)
        return shares


class _Recorded:
    """Gates that keep what they said, by layer."""

    def __init__(self, gates: RetentionGates, n_layers: int) -> None:
        self._gates = gates
        self.said: list[list[Floats]] = [[] for _ in range(n_layers)]

    def log_beta(self, layer: int, x: Floats) -> Floats:
        log_beta = self._gates.log_beta(layer, x)
        self.said[layer].append(log_beta)
        return log_beta


def inspect_retention(
    model_path: Path, gates_path: Path, token_ids: Sequence[int], memory: int, buffer: int = 16
) -> RetentionReport:
    """Run a text over a `trim` cache and look at what its gates said and who is left.

    Raises FileFormatError if the gates are of another model.
    """
    file = open_model(model_path)
    gates = _Recorded(read_gates(gates_path, file), file.config.n_layers)
    model = Model(
        file.config,
        ModelTensors(file),
        context_len=len(token_ids),
        max_tokens=_CHUNK,
        max_logit_rows=1,
        n_threads=1,
    )
    method = Trim(gates=str(gates_path), memory=memory, buffer=buffer)
    cache = BoundedStore(method, file.config, TrimPolicy(gates, 0), 1).new()
    for begin in range(0, len(token_ids), _CHUNK):
        _feed(model, cache, token_ids[begin : begin + _CHUNK])
    log_beta = np.array([np.concatenate(parts, axis=1) for parts in gates.said], np.float64)
    return RetentionReport(
        math.log(0.5) / np.minimum(log_beta, -1e-300),
        [cache.kept(layer) for layer in range(file.config.n_layers)],
    )


def _feed(model: Model, cache: BoundedCache, tokens: Sequence[int]) -> None:
    n = len(tokens)
    cache.reserve(n)
    model.run_body(
        Step(np.array(tokens, np.int32), [SequenceSlice(cache, 0, n)], np.empty(0, np.int32))
    )
