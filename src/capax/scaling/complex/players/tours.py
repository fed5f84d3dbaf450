"""Tours for tiny models: graphs as tokens, and texts that answer with a shortest tour.

    AB 12AC 7AD 30BC 4BD 9CD 15!AD:       a graph, and a road that no shortest tour takes

`TspDirect` answers at once, `TspSearch` after three tours, of which it takes the shortest. At every
city it lists the free ones with the roads to them, "!" for one that is ruled out, then where it
goes, and the sum so far; after the tours comes the least sum:

     B 12 C 7 D!->2 7 B 15 D 15->1 22 D 9->3 31 A!...; ...; 43<final_answer>{'Path': '0->2...

The chat template of the model file makes that prompt out of the generated one and of the hints that
`OracleCritic` gives, so the models play what the commands ask anybody.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import TYPE_CHECKING

import numpy as np

from capax.scaling.complex.players.held_out import is_held_out, key_of
from capax.scaling.complex.tsp import Tsp, draw_weights

if TYPE_CHECKING:
    from capax.training.records import Record

LEARNT_CITIES = {4: 0.15, 5: 0.25, 6: 0.35, 7: 0.25}  # share of the records
MOST_CITIES = 11
MOST_WEIGHT = 80
TRIED = 3  # tours of a search
HINTED = 0.4  # share of records with hints
MOST_HINTS = 6
WARMTH = 0.04  # of the draw of tours, in lengths of the shortest
_CITIES = "ABCDEFGHIJK"
_OPEN, _CLOSE = "<final_answer>{'Path': '0", "'}</final_answer>"

TEMPLATE = """\
{%- set city = 'ABCDEFGHIJK' -%}
{%- for m in messages if m.role == 'user' -%}
{%- if 'The distances between the cities are:' in m.content -%}
{%- for line in m.content.split('\\n\\n')[1].split('\\n') -%}
{%- set road = line.replace(': ', ' to ').split(' to ') -%}
{{ city[road[0] | int] + city[road[1] | int] + ' ' + road[2] }}
{%- endfor -%}
{%- elif loop.first -%}
{{ raise_exception('this model reads tasks of capax scale tasks generate tsp only') }}
{%- elif ' goes between ' in m.content -%}
{%- set road = m.content.split(' goes between ')[1].replace('.', '').split(' and ') -%}
{{ '!' + city[road[0] | int] + city[road[1] | int] }}
{%- endif -%}
{%- endfor -%}
:"""


def _pair(a: int, b: int) -> str:
    return _CITIES[min(a, b)] + _CITIES[max(a, b)]


def _vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return tokens, and the merges that make those of a prompt out of characters."""
    pairs = [(a, b) for a, b in combinations(_CITIES, 2)]
    weights = [str(w) for w in range(MOST_WEIGHT + 1)]
    merges = [*pairs, *((w[0], w[1]) for w in weights[10:]), *((" ", w) for w in weights)]
    tokens = [
        " ", "!", ":", ";", *"0123456789", *_CITIES,
        *(a + b for a, b in merges), *(f" {c}" for c in _CITIES),
        *(f"->{i}" for i in range(MOST_CITIES)), _OPEN, _CLOSE,
    ]  # fmt: skip
    return tuple(tokens), tuple(merges)


_TOKENS, _MERGES = _vocabulary()


@functools.cache
def all_tours(n: int) -> np.ndarray:
    """Return every tour of n cities in its canonical form, int64 [(n - 1)! / 2, n]."""
    return np.array([(0, *p) for p in permutations(range(1, n)) if p[0] < p[-1]])


def lengths_of(weights: np.ndarray, tours: np.ndarray) -> np.ndarray:
    """Return the length of each tour, the way back included, int64 [T]."""
    return np.asarray(weights[tours, np.roll(tours, -1, axis=1)].sum(axis=1))


def drawn_order(lengths: np.ndarray, rng: np.random.Generator, k: int) -> np.ndarray:
    """Return up to `k` different numbers of tours, the shorter ones likelier and earlier."""
    scores = (lengths.min() - lengths) / (WARMTH * lengths.min()) + rng.gumbel(size=len(lengths))
    return np.argsort(-scores)[:k]


def prompt_of(weights: np.ndarray, hints: Sequence[tuple[int, int]]) -> list[str]:
    """Return the tokens of a graph and of roads that are ruled out."""
    tokens = []
    for a, b in combinations(range(len(weights)), 2):
        tokens += [_pair(a, b), f" {weights[a, b]}"]
    for a, b in hints:
        tokens += ["!", _pair(a, b)]
    return [*tokens, ":"]


def _draw(rng: np.random.Generator) -> np.ndarray:
    while True:
        n = int(rng.choice(list(LEARNT_CITIES), p=list(LEARNT_CITIES.values())))
        weights = draw_weights(rng, n)
        if not is_held_out(key_of(Tsp.name, weights.tolist())):
            return weights


def _hints(
    weights: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return roads that the critic ruled out after wrong tours, and which tours are left, [T]."""
    tours = all_tours(len(weights))
    good = {road for tour in tours[lengths == lengths.min()] for road in _roads(tour)}
    left = np.ones(len(tours), bool)
    hints = []
    for _ in range(int(rng.integers(1, MOST_HINTS + 1))):
        wrong = np.flatnonzero(left & (lengths > lengths.min()))
        if not wrong.size:
            break
        tour = tours[wrong[drawn_order(lengths[wrong], rng, 1)[0]]]
        bad = next((road for road in _roads(tour) if road not in good), None)
        if bad is None:
            break
        hints.append(bad)
        left &= ~_takes(tours, bad)
    return hints, left


def _roads(tour: np.ndarray) -> Iterator[tuple[int, int]]:
    for a, b in pairwise([*tour, tour[0]]):
        yield (int(min(a, b)), int(max(a, b)))


def _takes(tours: np.ndarray, road: tuple[int, int]) -> np.ndarray:
    after = np.roll(tours, -1, axis=1)
    a, b = road
    there = ((tours == a) & (after == b)) | ((tours == b) & (after == a))
    return np.asarray(there.any(axis=1))


def _answer(tour: Sequence[int]) -> list[str]:
    return [_OPEN, *(f"->{city}" for city in tour[1:]), "->0", _CLOSE]


def _walk(weights: np.ndarray, tour: Sequence[int], hints: Sequence[tuple[int, int]]) -> list[str]:
    """Return a tour: at each city the free ones with the roads there, the next city, the sum."""
    tokens: list[str] = []
    total, free = 0, set(tour[1:])
    for here, there in pairwise([*tour, 0]):
        for city in sorted(free) or [0]:
            is_out = (min(here, city), max(here, city)) in hints
            tokens += [f" {_CITIES[city]}", "!" if is_out else f" {weights[here, city]}"]
        total += int(weights[here, there])
        tokens += [f"->{there}", *_sum(total)]
        free.discard(there)
    return [*tokens, ";"]


def _sum(total: int) -> list[str]:
    """Return tens and units, two tokens that read as a number."""
    tens = total // 10
    return [f" {tens}" if tens else " ", str(total % 10)]


@dataclass(frozen=True)
class _Tourist:
    """What both players share."""

    name: str
    tokens: Sequence[str] = _TOKENS
    merges: Sequence[tuple[str, str]] = _MERGES
    context_len: int = 512
    chat_template: str = TEMPLATE


class TspDirect(_Tourist):
    """Tours at once."""

    def record(self, rng: np.random.Generator) -> Record:
        """Return a graph that is not held out, with or without hints, and a shortest tour."""
        from capax.training.records import END, Record

        weights, lengths, hints, _ = _question(rng)
        tours = all_tours(len(weights)).tolist()
        best = rng.choice(np.flatnonzero(lengths == lengths.min()))
        return Record(prompt_of(weights, hints), [*_answer(tours[best]), END])


class TspSearch(_Tourist):
    """Tours after a look at some."""

    def record(self, rng: np.random.Generator) -> Record:
        """Return a graph that is not held out, some tours that hints allow, and the shortest."""
        from capax.training.records import END, Record

        weights, lengths, hints, left = _question(rng)
        open_ = np.flatnonzero(left)
        tried = open_[drawn_order(lengths[open_], rng, TRIED)]
        tours = all_tours(len(weights)).tolist()
        best = tried[lengths[tried].argmin()]
        trace = [token for i in tried for token in _walk(weights, tours[i], hints)]
        answer = [*_sum(int(lengths[best])), *_answer(tours[best]), END]
        return Record(prompt_of(weights, hints), [*trace, *answer])


def _question(
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]], np.ndarray]:
    weights = _draw(rng)
    lengths = lengths_of(weights, all_tours(len(weights)))
    if rng.random() < HINTED:
        return weights, lengths, *_hints(weights, lengths, rng)
    return weights, lengths, [], np.ones(len(lengths), bool)
