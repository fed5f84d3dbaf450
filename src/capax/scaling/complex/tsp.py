"""TSP-Opt: the shortest closed tour through all cities of a complete graph.

Weights are symmetric and uniform from 1 to 20 + 10 * (cities - 5); the paper leaves them open.
Truth: Held and Karp's dynamic programme, n^2 2^n steps, with every optimal tour. A tour is right if
it has their length, in any rotation and direction; `is_right_strictly` asks for a listed string, as
the released metric does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.instance import Instance, last_tag

MAX_CITIES = 14
_PATH = re.compile(r"path['\"]?\s*:\s*['\"]?\s*([0-9][0-9\s>\-]{0,400})", re.IGNORECASE)
_PROMPT = """\
Find the shortest tour that starts at city 0, visits each of the {n} cities exactly once and ends \
at city 0. The distances between the cities are:

{lines}

Think step by step. Then give the tour and its length, exactly in this form:
<final_answer>{{'Path': '0->...->0', 'TotalDistance': '...'}}</final_answer>"""


def draw_weights(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return symmetric weights, int64 [n, n], zero on the diagonal."""
    upper = np.triu(rng.integers(1, 20 + 10 * max(n - 5, 0), size=(n, n), endpoint=True), 1)
    return np.asarray(upper + upper.T)


def optimal_tours(weights: np.ndarray) -> tuple[int, list[list[int]]]:
    """Return the least length and every tour of it, canonical: from 0, lower neighbour first."""
    n = len(weights)
    size = 1 << (n - 1)  # sets of the cities 1 to n - 1; city j is bit j - 1
    far = np.iinfo(np.int64).max // 4
    best = np.full((size, n - 1), far, np.int64)  # of paths from 0 through the set, ending at j
    inner = weights[1:, 1:]
    for j in range(n - 1):
        best[1 << j, j] = weights[0, j + 1]
    for cities in range(1, size):
        if cities & (cities - 1) == 0:
            continue
        for j in range(n - 1):
            if cities >> j & 1:
                best[cities, j] = (best[cities & ~(1 << j)] + inner[:, j]).min()
    lengths = best[size - 1] + weights[1:, 0]
    shortest = int(lengths.min())
    tours: list[list[int]] = []

    def walk(cities: int, last: int, after: list[int]) -> None:
        rest = cities & ~(1 << last)
        path = [last + 1, *after]
        if not rest:
            if path[0] <= path[-1]:
                tours.append([0, *path])
            return
        reached = best[rest] + inner[:, last]
        for before in np.flatnonzero(reached == best[cities, last]):
            if rest >> int(before) & 1:
                walk(rest, int(before), path)

    for last in np.flatnonzero(lengths == shortest):
        walk(size - 1, int(last), [])
    return shortest, sorted(tours)


def length_of(weights: Sequence[Sequence[int]], tour: Sequence[int]) -> int:
    """Return the length of a tour, the way back included."""
    return sum(int(weights[a][b]) for a, b in zip(tour, [*tour[1:], tour[0]], strict=True))


def canonical(tour: Sequence[int]) -> list[int]:
    """Return a tour from city 0, its lower neighbour first; unchanged if it has no single 0."""
    if list(tour).count(0) != 1:
        return list(tour)
    at = list(tour).index(0)
    turned = [*tour[at:], *tour[:at]]
    return turned if len(turned) < 3 or turned[1] <= turned[-1] else [0, *reversed(turned[1:])]


class Tsp:
    """See the module. Level: cities."""

    name = "tsp"
    default_counts: Mapping[int, int] = dict.fromkeys(range(6, 14), 100)
    share = 1

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make a graph of `level` cities."""
        if not 4 <= level <= MAX_CITIES:
            raise ConfigError(f"tsp has levels 4 to {MAX_CITIES} (cities), not {level}")
        weights = draw_weights(rng, level)
        shortest, tours = optimal_tours(weights)
        lines = [f"{a} to {b}: {weights[a, b]}" for a in range(level) for b in range(a + 1, level)]
        return Instance(
            self.name,
            level,
            "",
            _PROMPT.format(n=level, lines="\n".join(lines)),
            weights.tolist(),
            {"weights": weights.tolist(), "length": shortest, "tours": tours},
            2 * len(tours) / math.factorial(level - 1),
        )

    def extract(self, text: str) -> str | None:
        """Return the cities of a closed tour with dashes between, canonical; None if not closed."""
        path = _PATH.search(last_tag(text) or "")
        if path is None:
            return None
        cities = [int(city) for city in re.findall(r"\d{1,6}", path[1])]
        if len(cities) < 2 or cities[0] != cities[-1]:
            return None
        return "-".join(map(str, canonical(cities[:-1])))

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Ask for a permutation of the cities that has the least length."""
        tour = [int(city) for city in answer.split("-")]
        weights = truth["weights"]
        return sorted(tour) == list(range(len(weights))) and (
            length_of(weights, tour) == truth["length"]
        )

    def is_right_strictly(self, truth: Mapping[str, Any], text: str) -> bool:
        """Ask for a listed string, as the released metric: not another rotation or direction."""
        path = _PATH.search(last_tag(text) or "")
        cities = [int(city) for city in re.findall(r"\d{1,6}", path[1])] if path else []
        return any(cities == [*tour, 0] for tour in truth["tours"])

    def solve(self, instance: Instance) -> str:
        """Write the first optimal tour."""
        return render(instance.truth["tours"][0], instance.truth["length"])

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Write a uniform tour from city 0."""
        tour = [0, *(int(city) + 1 for city in rng.permutation(instance.level - 1))]
        return render(tour, length_of(instance.truth["weights"], tour))

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Name a city that is missing, or a road of the tour that no optimal tour takes."""
        if answer is None:
            return "No closed tour in the asked form was found."
        tour = [int(city) for city in answer.split("-")]
        missing = set(range(instance.level)) - set(tour)
        if missing:
            return f"City {min(missing)} is not visited."
        if len(tour) != instance.level:
            return "A city is visited twice, or does not exist."
        good = {road for best in instance.truth["tours"] for road in _roads(best)}
        for a, b in _roads(tour):
            if (a, b) not in good:
                return f"No shortest tour goes between {a} and {b}."
        excess = length_of(instance.truth["weights"], tour) / instance.truth["length"] - 1
        band = "under 10 %" if excess < 0.1 else "10 % or more"
        return f"The tour is too long, by {band}."


def _roads(tour: Sequence[int]) -> list[tuple[int, int]]:
    return [(min(a, b), max(a, b)) for a, b in zip(tour, [*tour[1:], tour[0]], strict=True)]


def render(tour: Sequence[int], length: int) -> str:
    """Return the text of a tour in the asked form."""
    path = "->".join(map(str, [*tour, tour[0]]))
    return f"<final_answer>{{'Path': '{path}', 'TotalDistance': '{length}'}}</final_answer>"
