"""SnapKV (Li et al., 2024, arXiv 2404.14469).

Idea. The last few queries of a prompt, the observation window, already show which earlier tokens
the answer will need. So keep the window and those that it attends to most, smoothed over neighbours
so that the tokens around an important one stay with it.
Keeps: of each KV head its own; a float32 sum per entry.
Costs: the weights of the window's queries are computed a second time.
Differs from the paper, which compresses a whole prompt once and lets the answer grow: here every
`buffer` tokens the last `window` queries decide again, so the bound holds while decoding too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from capax.errors import ConfigError
from capax.files.model_file import ModelFile
from capax.kv.bounded import BoundedMethod, Entries, Policy, Scores, recent
from capax.kv.cache import Floats
from capax.methods import Method, register


class SnapPolicy(Policy):
    """The window first, then what it attends to, the highest of `pool` neighbours counting."""

    carries = False

    def __init__(self, window: int, pool: int) -> None:
        self.watches = window
        self._pool = pool

    def scores(self, entries: Entries) -> Scores:
        return np.where(recent(entries, self.watches), np.inf, pooled(entries.numbers, self._pool))


def pooled(x: Floats, width: int) -> Floats:
    """Return the maximum of `width` (odd) neighbours around each value: [n_kv_heads, n]."""
    side = width // 2
    wide = np.pad(x, ((0, 0), (side, side)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(wide, width, axis=1)
    return np.asarray(windows.max(axis=-1), np.float32)


@dataclass(frozen=True, kw_only=True)
class SnapKV(BoundedMethod):
    """Options: queries that decide, and neighbours that an entry's score is the highest of."""

    window: int = 16
    pool: int = 7
    notes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        most = min(self.n_entries - self.memory, self.memory)
        if not 1 <= self.window <= most:
            raise ConfigError(
                f"window={self.window} is not in 1..{most}: no more than the buffer, nor the memory"
            )
        if self.pool < 1 or self.pool % 2 == 0:
            raise ConfigError(f"pool={self.pool} is not an odd number above 0")

    def policy(self, model: ModelFile) -> Policy:
        """Return what decides."""
        return SnapPolicy(self.window, self.pool)


register(
    Method(
        "snapkv",
        "kv",
        "Li et al., 2024, arXiv 2404.14469",
        "Keep what the last few queries attend to, and their neighbours.",
        SnapKV,
    )
)
