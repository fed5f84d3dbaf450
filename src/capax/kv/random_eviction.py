"""Random eviction: the control that every eviction method must beat.

Idea. Keep the most recent tokens and, of all others, a uniform random sample. Each token of a layer
and head draws a number once, from (seed, layer, head, position), and the highest stay: a reservoir
sample, so a token of long ago is as likely to be there as one of a while ago.
Keeps: of each KV head its own. Costs: a few operations per entry when entries are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capax.errors import ConfigError
from capax.files.model_file import ModelFile
from capax.kv.bounded import BoundedMethod, Entries, Policy, Scores, recent
from capax.methods import Method, register


class RandomPolicy(Policy):
    """Recent ones first, then whoever drew the highest number."""

    def __init__(self, n_recent: int, seed: int) -> None:
        self._n_recent, self._seed = n_recent, seed

    def scores(self, entries: Entries) -> Scores:
        heads = np.arange(len(entries.positions), dtype=np.uint64)[:, None]
        stream = mixed(np.uint64(self._seed) + (np.uint64(entries.layer) << np.uint64(32)) + heads)
        draws = mixed(stream + entries.positions.astype(np.uint64)) >> np.uint64(11)
        return np.where(recent(entries, self._n_recent), np.inf, draws.astype(np.float64))


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits of each number (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, kw_only=True)
class RandomEviction(BoundedMethod):
    """Options: how many of the kept are the most recent ones (none: half), and the seed."""

    recent: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent is not None and not 0 <= self.recent <= self.memory:
            raise ConfigError(f"recent={self.recent} is not in 0..memory = {self.memory}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed={self.seed} is not in 0..2^63 - 1")

    def policy(self, model: ModelFile) -> Policy:
        """Return what decides."""
        return RandomPolicy(self.memory // 2 if self.recent is None else self.recent, self.seed)


register(
    Method(
        "random",
        "kv",
        "",
        "Keep the most recent tokens and a random sample of the others (a control).",
        RandomEviction,
    )
)
