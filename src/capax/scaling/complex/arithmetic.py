"""Arithmetic: the value of a chain of operations on whole numbers. Level: operations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.instance import Instance, last_final

N_GUESSES = 1000
_NUMBER = re.compile(r"(-?\d{1,30})\b")


class Arithmetic:
    """See the module."""

    name = "arithmetic"
    default_counts: Mapping[int, int] = dict.fromkeys((1, 2, 3, 4, 6, 8), 100)
    share = 1

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make a chain; products come one after the other, so brackets tell the order."""
        if not 1 <= level <= 50:
            raise ConfigError(f"arithmetic has levels 1 to 50 (operations), not {level}")
        value = int(rng.integers(1, 100))
        text = str(value)
        for _ in range(level):
            sign = "+-*"[int(rng.integers(3))] if abs(value) < 10_000 else "+-"[rng.integers(2)]
            other = int(rng.integers(2, 10 if sign == "*" else 100))
            value = {"+": value + other, "-": value - other, "*": value * other}[sign]
            text = f"({text} {sign} {other})"
        prompt = (
            f"Compute {text[1:-1]}.\n\nThink step by step. Then end with the value in the form "
            "'Final Answer: N'."
        )
        return Instance(self.name, level, "", prompt, [text], {"value": str(value)}, 1 / N_GUESSES)

    def extract(self, text: str) -> str | None:
        """Return the whole number after the last "Final Answer:"."""
        found = _NUMBER.match((last_final(text) or "").replace(",", ""))
        return str(int(found[1])) if found else None

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Compare numbers."""
        return bool(answer == truth["value"])

    def solve(self, instance: Instance) -> str:
        """Write the value."""
        return f"Final Answer: {instance.truth['value']}"

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Write one of the thousand numbers that end before the value's next thousand."""
        low = int(instance.truth["value"]) // N_GUESSES * N_GUESSES
        return f"Final Answer: {low + int(rng.integers(N_GUESSES))}"

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Say no more than that it is wrong."""
        return "No number in the asked form was found." if answer is None else "It is not right."
