"""Synthetic people whose information content is known by construction, in a compact spelling.

"Physics of Language Models: Part 3.3" (2024, arXiv 2404.05405), bioS(N): N people with distinct
names out of N0 = 400 * 400 * 1000 and six independent attributes with S0 joint values. A value is
spelled with one or two symbols of one alphabet of 128 (index // 128, index % 128), so that a person
costs 25 tokens:

    start | first, middle, last: 2 symbols each | six times: marker of the attribute, its symbols

The attributes stand in an order that is drawn anew at every occurrence. The working city of bioS, a
function of the employer, is left out: it would carry no bits.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capax.errors import ConfigError

ALPHABET = 128
NAME_SIZES = (400, 400, 1000)


class Attribute(NamedTuple):
    """`sizes`: how many values each of its independent parts can take."""

    name: str
    sizes: tuple[int, ...]

    @property
    def n_symbols(self) -> int:
        return sum(map(symbols_of, self.sizes))


def symbols_of(size: int) -> int:
    """Return how many symbols spell a value out of so many."""
    return 1 if size <= ALPHABET else 2


ATTRIBUTES = (
    Attribute("birthday", (12, 28, 200)),
    Attribute("birth city", (200,)),
    Attribute("university", (300,)),
    Attribute("major", (100,)),
    Attribute("employer", (263,)),
    Attribute("pronoun", (2,)),
)
N0 = math.prod(NAME_SIZES)
S0 = math.prod(size for attribute in ATTRIBUTES for size in attribute.sizes)

MARKERS = range(ALPHABET, ALPHABET + len(ATTRIBUTES))
START = ALPHABET + len(ATTRIBUTES)
TAG = START + 1  # may stand before documents that are worth remembering
VOCAB_SIZE = TAG + 1
N_NAME = sum(map(symbols_of, NAME_SIZES))
N_VALUES = sum(attribute.n_symbols for attribute in ATTRIBUTES)
N_TOKENS = 1 + N_NAME + len(ATTRIBUTES) + N_VALUES  # of a person

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Biographies:
    """`n` people, a function of the seed.

    `tokens`: int32 [n, 25], the attributes in the order of `ATTRIBUTES`.
    """

    n: int
    seed: int = 0
    tokens: Tokens = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= N0:
            raise ConfigError(f"people are {self.n:,} but names suffice for 1 to {N0:,}")
        rng = np.random.default_rng([2404, 5405, self.seed])
        ids = _distinct(rng, self.n)
        columns = [np.full(self.n, START)]
        for size in reversed(NAME_SIZES):
            ids, part = np.divmod(ids, size)
            columns[1:1] = _spelled(part, size)
        for marker, attribute in zip(MARKERS, ATTRIBUTES, strict=True):
            columns.append(np.full(self.n, marker))
            for size in attribute.sizes:
                columns += _spelled(rng.integers(size, size=self.n), size)
        object.__setattr__(self, "tokens", np.stack(columns, 1).astype(np.int32))

    def documents(self, people: npt.NDArray[np.int64], rng: np.random.Generator) -> Tokens:
        """Return one document of each of `people`, [len(people), 25], orders drawn by `rng`."""
        orders = _ORDERS[rng.integers(len(_ORDERS), size=len(people))]
        return np.take_along_axis(self.tokens[people], orders, 1)


def _distinct(rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    """Draw n different numbers below N0, without a list of all of them."""
    found = np.empty(0, np.int64)
    while found.size < n:
        more = rng.integers(N0, size=2 * (n - found.size) + 16)
        both = np.concatenate([found, more])
        _, first = np.unique(both, return_index=True)
        found = both[np.sort(first)][:n]  # in the order of drawing
    return found


def _spelled(values: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    if symbols_of(size) == 1:
        return [values]
    return [values // ALPHABET, values % ALPHABET]


def _places() -> npt.NDArray[np.int64]:
    """Return for each order where its tokens stand in the order of `ATTRIBUTES`: [720, 25]."""
    begins = list(itertools.accumulate((1 + a.n_symbols for a in ATTRIBUTES), initial=1 + N_NAME))
    spans = [range(begin, end) for begin, end in itertools.pairwise(begins)]
    head = list(range(1 + N_NAME))
    return np.array(
        [
            head + [place for attribute in order for place in spans[attribute]]
            for order in itertools.permutations(range(len(ATTRIBUTES)))
        ]
    )


_ORDERS = _places()


def attribute_tokens(index: int) -> slice:
    """Return where marker and value of an attribute stand in `Biographies.tokens`."""
    begin = 1 + N_NAME + sum(1 + a.n_symbols for a in ATTRIBUTES[:index])
    return slice(begin, begin + 1 + ATTRIBUTES[index].n_symbols)


def uniform_nats() -> tuple[float, float]:
    """Return p1 and p2 of a predictor that knows the spelling and nothing of the people.

    It gives every valid value the same chance: a city's first symbol is 0 in 128 of 200 cases.
    """
    return math.log(N0), math.log(S0)


def vocabulary() -> tuple[list[str], int]:
    """Return the spelling of every token, and how many of them, the last, are control tokens.

    A symbol is spelled as GPT-2's stand-in for the byte of its number; nobody reads it as text.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    stand_in = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    control = [f"<|{a.name.replace(' ', '_')}|>" for a in ATTRIBUTES] + ["<|start|>", "<|tag|>"]
    return [*(stand_in[b] for b in range(ALPHABET)), *control], len(control)
