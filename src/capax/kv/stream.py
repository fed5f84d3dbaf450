"""StreamingLLM (Xiao et al., 2023, arXiv 2309.17453).

Idea. Models pour attention that goes nowhere onto the first tokens of a text (sinks); dropping
those ruins everything, dropping what lies in the middle does not. So keep the first few tokens and
the most recent ones.
Keeps: the first `sinks` tokens and the last `memory - sinks`, the same in every head.
Costs: nothing to decide. Differs from the paper: survivors keep their original positions, where
the paper counts positions anew within the cache; so texts stay within the model's context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capax.errors import ConfigError
from capax.files.model_file import ModelFile
from capax.kv.bounded import BoundedMethod, Entries, Policy, Scores
from capax.methods import Method, register


class StreamPolicy(Policy):
    """The first tokens, then the newest."""

    def __init__(self, sinks: int) -> None:
        self._sinks = sinks

    def scores(self, entries: Entries) -> Scores:
        newest = entries.positions.astype(np.float64)
        return np.where(entries.positions < self._sinks, np.inf, newest)


@dataclass(frozen=True, kw_only=True)
class Stream(BoundedMethod):
    """Options: how many first tokens stay."""

    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sinks < self.memory:
            raise ConfigError(f"sinks={self.sinks} is not in 0..memory - 1 = {self.memory - 1}")

    def policy(self, model: ModelFile) -> Policy:
        """Return what decides."""
        return StreamPolicy(self.sinks)


register(
    Method(
        "stream",
        "kv",
        "Xiao et al., 2023, arXiv 2309.17453",
        "Keep the first tokens and the most recent ones.",
        Stream,
    )
)
