"""The nodes that a strategy may name: who they are, and what they weigh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capax.errors import ConfigError
from capax.scaling.swarm.consensus import Node

EVERY = "all"


@dataclass(frozen=True)
class Members:
    """Nodes in their order; `weights` of judges, `standing` of answers by id; None: all alike."""

    nodes: Sequence[Node]
    weights: Mapping[str, float] | None = None
    standing: Mapping[str, float] | None = None

    def chosen(self, names: str) -> list[Node]:
        """Return the nodes that `names` spells: 'all', or ids joined by '+'. Raises ConfigError."""
        return [self.nodes[i] for i in chosen_among([node.id for node in self.nodes], names)]


def chosen_among(ids: Sequence[str], names: str) -> list[int]:
    """Return the places in `ids` that 'all' or ids joined by '+' spell. Raises ConfigError."""
    if names == EVERY:
        return list(range(len(ids)))
    found = []
    for name in names.split("+"):
        if name not in ids:
            raise ConfigError(
                f"there is no node {name!r:.60}; there are {', '.join(ids)[:200]}, or '{EVERY}'"
            )
        found.append(ids.index(name))
    if len(set(found)) < len(found):
        raise ConfigError(f"nodes {names!r:.60} names one twice")
    return found
