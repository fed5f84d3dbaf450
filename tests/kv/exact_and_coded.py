"""The rule of positions as plainly as it can be read, in float64 and outside the program.

A query at p reads the token at j from codes iff j // window + lag < p // window, and exactly
otherwise, whatever `window` is: the program has 64.
"""

from __future__ import annotations

import numpy as np

from capax import _native
from capax.files.config import ModelConfig
from capax.kv import AttentionInput


class ExactAndCoded:
    """A cache of one sequence that keeps every token both ways."""

    page_tokens = 64

    def __init__(
        self, config: ModelConfig, codec: _native.Codec, window: int, lag: int = 0
    ) -> None:
        self._config = config
        self._codec = codec
        self._window, self._lag = window, lag
        self._exact: list[list[np.ndarray]] = [[] for _ in range(config.n_layers)]
        self.n_tokens = 0

    def reserve(self, n_new: int) -> None:
        """There is always room."""

    def append(self, layer: int, inputs: AttentionInput, positions: np.ndarray) -> None:
        c = self._config
        k = inputs.rotate(inputs.k, positions).reshape(-1, c.n_kv_heads, c.head_dim)
        v = np.asarray(inputs.v).reshape(-1, c.n_kv_heads, c.head_dim)
        both = np.stack([k, v]).astype(np.float16).astype(np.float32)
        self._exact[layer].append(both)

    def attend(self, layer: int, q: np.ndarray, positions: np.ndarray) -> np.ndarray:
        c = self._config
        exact = np.concatenate(self._exact[layer], axis=1)  # [2, n, heads, dim]
        coded = self._decoded(layer, exact)
        out = np.empty((len(q), c.n_heads, c.head_dim), np.float32)
        for row, p in enumerate(positions):
            j = np.arange(p + 1)
            is_coded = j // self._window + self._lag < p // self._window
            for head in range(c.n_heads):
                kv_head = head // (c.n_heads // c.n_kv_heads)
                k, v = np.where(
                    is_coded[None, :, None], coded[:, : p + 1, kv_head], exact[:, : p + 1, kv_head]
                ).astype(np.float64)
                s = k @ q[row, head] * c.attention_scale
                weights = np.exp(s - s.max())
                out[row, head] = weights / weights.sum() @ v
        return out

    def advance(self, n_new: int) -> None:
        self.n_tokens += n_new

    def _decoded(self, layer: int, exact: np.ndarray) -> np.ndarray:
        n, c = exact.shape[1], self._config
        padded = np.zeros((2, -(-n // 64) * 64, *exact.shape[2:]), np.float32)
        padded[:, :n] = exact
        tables = np.zeros((padded.shape[1], c.head_dim // 2), np.float32)
        for begin in range(0, padded.shape[1], 64):
            for head in range(c.n_kv_heads):
                at = layer, head, begin
                k, v = (x[begin : begin + 64, head].copy() for x in padded)
                codes = self._codec.encode(*at, k, v, tables, tables, False)
                both = self._codec.decode(*at, codes, tables, tables, False)
                padded[:, begin : begin + 64, head] = both
        return padded[:, :n]
