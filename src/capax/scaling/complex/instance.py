"""One generated question with its exact truth, and what a family of them offers.

"Inference-Time Scaling for Complex Tasks" (2025, arXiv 2504.00294). A family makes instances of a
level, reads answers out of text in one spelling for equal ones, and decides whether one is right.
`level` is a number that the difficulty follows: variables, cities, rooms, places, steps.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from capax.errors import ConfigError

MAX_CHARS = 20_000
MAX_ATTEMPTS = 10_000
OTHER_LEVELS = 100  # instances of a level that is not in the default set
_TAGS = re.compile(r"<final_answer>(.{0,4000}?)</final_answer>", re.DOTALL | re.IGNORECASE)
_FINAL = re.compile(r"final answer:[ \t]*([^\n]{1,200})", re.IGNORECASE)


class Instance(msgspec.Struct, frozen=True):
    """A question. `blind`: the chance that one uniform guess is right; `truth`: for checkers only.

    `content`: what makes it this instance and no other, in a canonical form.
    """

    family: str
    level: int
    cell: str
    prompt: str
    content: list[Any]
    truth: dict[str, Any]
    blind: float

    @property
    def key(self) -> str:
        """SHA-256 of the canonical content, in hex: equal for equal instances."""
        content = json.dumps([self.family, self.content], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


class Family(Protocol):
    """A kind of question. All methods are pure; texts and answers given to them may be anything."""

    name: str
    default_counts: Mapping[int, int]  # how many of each level the default set has
    share: int  # neighbours in number that are drawn from one stream

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make instance `number` of a level, or None if this draw gives none (draw again)."""
        ...

    def extract(self, text: str) -> str | None:
        """Return the answer in a text, in one spelling for equal answers, or None."""
        ...

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Decide about an extracted answer."""
        ...

    def solve(self, instance: Instance) -> str:
        """Return a text that a player who knows the truth would write."""
        ...

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Return the text of a uniform guess; it is right with probability `blind`."""
        ...

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Say what is wrong with a wrong answer without telling a right one."""
        ...


def generate(
    family: Family, levels: Sequence[int] | None = None, per_level: int | None = None, seed: int = 0
) -> Iterator[Instance]:
    """Yield different instances, level by level; the same seed gives the same.

    Raises ConfigError if a level has not as many different ones.
    """
    seen: set[str] = set()
    for level in levels or family.default_counts:
        for number in range(per_level or family.default_counts.get(level, OTHER_LEVELS)):
            yield _fresh(family, level, number, seed, seen)


def _fresh(family: Family, level: int, number: int, seed: int, seen: set[str]) -> Instance:
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, level, number // family.share, attempt])
        instance = family.make(rng, level, number)
        if instance is not None and (key := instance.key) not in seen:
            seen.add(key)
            return instance
    raise ConfigError(
        f"{family.name} has no further instance of level {level} after {number}; ask for fewer, or "
        "for a higher level"
    )


def last_tag(text: str) -> str | None:
    """Return what the last <final_answer> holds."""
    found = _TAGS.findall(text[-MAX_CHARS:])
    return str(found[-1]).strip() if found else None


def last_final(text: str) -> str | None:
    """Return what follows the last "Final Answer:" on its line, without stars."""
    found = _FINAL.findall(text[-MAX_CHARS:].replace("*", ""))
    return str(found[-1]).strip() if found else None
