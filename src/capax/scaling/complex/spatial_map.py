"""SpatialMap: where places lie from each other, with four options.

Places have different x and different y. Stated are the relations of neighbours in x order and in y
order, so that both orders, and with them every relation, follow; what is asked is not stated
verbatim. For "which" and "how many" every place is decided. Level: places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.choices import FORM, FourOptions, with_options
from capax.scaling.complex.instance import Instance

NAMES = (
    "the bakery", "the library", "the harbour", "the school", "the mill", "the museum",
    "the garden", "the station", "the market", "the theatre", "the bridge", "the tower",
    "the church", "the hotel", "the bank", "the forge",
)  # fmt: skip
DIRECTIONS = ("northeast", "northwest", "southeast", "southwest")
KINDS = ("direction", "which", "how many")


def relation(a: Sequence[int], b: Sequence[int]) -> str:
    """Return where a = (x, y) lies from b; y grows to the north."""
    return ("north" if a[1] > b[1] else "south") + ("east" if a[0] > b[0] else "west")


def stated_pairs(xs: np.ndarray, ys: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs (lower index first) that are neighbours in one of the orders."""
    return {
        (min(a, b), max(a, b))
        for values in (xs, ys)
        for order in (values.argsort().tolist(),)
        for a, b in pairwise(order)
    }


class SpatialMap(FourOptions):
    """See the module. Level: places."""

    name = "spatial"
    default_counts: Mapping[int, int] = dict.fromkeys((5, 6, 8), 500)
    share = 1

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make a map and a question about it; the kind is `number` modulo 3."""
        if not 3 <= level <= len(NAMES):
            raise ConfigError(f"spatial has levels 3 to {len(NAMES)} (places), not {level}")
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:level]]
        xs, ys = rng.permutation(level), rng.permutation(level)
        places = list(zip(xs.tolist(), ys.tolist(), strict=True))
        stated = stated_pairs(xs, ys)
        kind = KINDS[number % 3] if level >= 5 else "direction"
        asked = _question(rng, kind, names, places, stated)
        if asked is None:
            return None
        question, right, wrong = asked
        lines = [
            f"{names[a].capitalize()} is to the {relation(places[a], places[b])} of {names[b]}."
            for a, b in (_either_way(rng, pair) for pair in sorted(stated))
        ]
        lines = [lines[i] for i in rng.permutation(len(lines))]
        options, letter = with_options(rng, right, wrong)
        prompt = "\n".join(
            [f"A map has {level} places. No two are at the same height or on the same vertical.",
             *lines, "", question, options, "", FORM]
        )  # fmt: skip
        truth = {"letter": letter, "answer": right}
        content = [question, sorted(lines), sorted([right, *wrong])]
        return Instance(self.name, level, kind, prompt, content, truth, 0.25)


def _either_way(rng: np.random.Generator, pair: tuple[int, int]) -> tuple[int, int]:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _question(
    rng: np.random.Generator,
    kind: str,
    names: list[str],
    places: list[tuple[int, int]],
    stated: set[tuple[int, int]],
) -> tuple[str, str, list[str]] | None:
    """Return the question, the right option and three wrong ones; None if the map has none."""
    n = len(places)
    a, b = (int(v) for v in rng.permutation(n)[:2])
    where = relation(places[a], places[b])
    hidden = (min(a, b), max(a, b)) not in stated
    if kind == "direction":
        text = f"In which direction from {names[b]} does {names[a]} lie?"
        return (text, where, [d for d in DIRECTIONS if d != where]) if hidden else None
    lying = [i for i in range(n) if i != b and relation(places[i], places[b]) == where]
    if kind == "which":
        others = [i for i in range(n) if i != b and i not in lying]
        if not hidden or len(others) < 3:
            return None
        wrong = [names[others[i]] for i in rng.permutation(len(others))[:3]]
        return f"Which of these places lies to the {where} of {names[b]}?", names[a], wrong
    count = len(lying) if rng.random() < 0.75 else 0
    if count == 0:
        empty = [d for d in DIRECTIONS if all(relation(p, places[b]) != d for p in _but(places, b))]
        if not empty:
            return None
        where = empty[0]
    low = max(0, count - int(rng.integers(4)))
    wrong = [str(v) for v in range(low, low + 4) if v != count][:3]
    return f"How many places lie to the {where} of {names[b]}?", str(count), wrong


def _but(places: list[tuple[int, int]], i: int) -> list[tuple[int, int]]:
    return [place for at, place in enumerate(places) if at != i]
