"""Random draws that are the same on every version of Python.

Python promises the sequence of `random()` for a seed, but not that of `choice`, `sample` or
`shuffle`; here they are made from `random()` alone, and never from the order of a set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

from capax.measuring.procbench.problem import DIGITS, LETTERS

T = TypeVar("T")


class Draws:
    """A stream of draws, a function of the key only."""

    def __init__(self, key: str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def sample(self, options: Sequence[T], n: int) -> list[T]:
        """Draw n different positions of `options`, in random order."""
        pool = list(options)
        for i in range(n):
            j = self.integer(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.sample(options, len(options))

    def letters(self, n: int) -> str:
        """Draw n lower-case letters."""
        return "".join(self.choice(LETTERS) for _ in range(n))

    def mixed(self, n: int, letter_weight: float = 0.5) -> str:
        """Draw n letters and digits: each letter has `letter_weight`, each digit the rest.

        At 0.5 all 36 are equally likely, so 26 of 36 characters are letters, as published.
        """
        of_letters = letter_weight * len(LETTERS)
        share = of_letters / (of_letters + (1 - letter_weight) * len(DIGITS))
        return "".join(
            self.choice(LETTERS if self._random.random() < share else DIGITS) for _ in range(n)
        )
