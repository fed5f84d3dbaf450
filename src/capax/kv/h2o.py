"""H2O, the heavy-hitter oracle (Zhang et al., 2023, arXiv 2306.14048).

Idea. A few tokens receive most of the attention, and those that received much so far will go on to.
So keep half of the budget for the most recent tokens and half for the heavy hitters: the entries
with the largest sum of attention weights over all queries since they were written.
Keeps: of each KV head its own; a float32 sum per entry.
Costs: the weights are computed a second time to be summed, so attention costs about twice as much.
Open in the paper, decided here: query heads that share a KV head are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from capax.errors import ConfigError
from capax.files.model_file import ModelFile
from capax.kv.bounded import MAX_ENTRIES, BoundedMethod, Entries, Policy, Scores, recent
from capax.methods import Method, register


class H2OPolicy(Policy):
    """Recent ones first, then those that were attended to most."""

    watches = 2 * MAX_ENTRIES  # all queries

    def __init__(self, n_recent: int) -> None:
        self._n_recent = n_recent

    def scores(self, entries: Entries) -> Scores:
        return np.where(recent(entries, self._n_recent), np.inf, entries.numbers)


@dataclass(frozen=True, kw_only=True)
class H2O(BoundedMethod):
    """Options: how many of the kept are the most recent ones (none: half)."""

    recent: int | None = None
    notes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent is not None and not 0 <= self.recent <= self.memory:
            raise ConfigError(f"recent={self.recent} is not in 0..memory = {self.memory}")

    def policy(self, model: ModelFile) -> Policy:
        """Return what decides."""
        return H2OPolicy(self.memory // 2 if self.recent is None else self.recent)


register(
    Method(
        "h2o",
        "kv",
        "Zhang et al., 2023, arXiv 2306.14048",
        "Keep the most recent tokens and those that were attended to most.",
        H2O,
    )
)
