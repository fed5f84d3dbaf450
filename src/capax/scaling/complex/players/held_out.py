"""Which generated instances nothing may be learnt from, by their canonical key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capax.errors import ConfigError
from capax.scaling.complex.families import family_named, task_line
from capax.scaling.complex.instance import Family, Instance, generate
from capax.scaling.complex.three_sat import CELLS, ThreeSat

HELD_OUT = 8  # one instance in so many is held out
ASKED_LEVELS: Mapping[str, Sequence[int]] = {
    "tsp": (4, 5, 6, 7, 8, 11),
    "3sat": (4, 5, 6, 7, 8, 9, 10),
}


def is_held_out(key: str) -> bool:
    """Say whether an instance must not be learnt from; `key`: that of `Instance`."""
    return int(key[:8], 16) % HELD_OUT == 0


def key_of(family: str, content: list[Any]) -> str:
    """Return the key of the instance with this canonical content."""
    return Instance(family, 0, "", "", content, {}, 0.0).key


def held_out(family: Family, level: int, n: int, seed: int = 0) -> list[Instance]:
    """Return `n` held-out instances of a level, the first ones, shared evenly between its cells.

    Raises ConfigError if the level has not as many different ones.
    """
    n_cells = len(CELLS) if family.name == ThreeSat.name else 1
    counts: Counter[str] = Counter()
    found: list[Instance] = []
    for instance in generate(family, [level], 3 * HELD_OUT * n + 200, seed):  # far more than needed
        if is_held_out(instance.key) and counts[instance.cell] * n_cells < n:
            counts[instance.cell] += 1
            found.append(instance)
            if len(found) == n:
                return found
    raise ConfigError(f"{family.name} of level {level} has {len(found)} held out, fewer than {n}")


def write_held_out(folder: Path, per_level: int) -> list[Path]:
    """Write `tsp.jsonl` and `3sat.jsonl`, learnt and harder levels; returns the paths."""
    paths = []
    for name, levels in ASKED_LEVELS.items():
        lines = [
            task_line(instance)
            for level in levels
            for instance in held_out(family_named(name), level, per_level)
        ]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        paths.append(path)
    return paths
