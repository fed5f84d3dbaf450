"""What families with four options share: the question's form, and reading a letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from capax.scaling.complex.instance import Instance, last_final

LETTERS = "ABCD"
_LETTER = re.compile(r"\(?([A-D])\b")


def with_options(rng: np.random.Generator, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Return the lines of four options in random order, and the letter of the right one."""
    options = [right, *wrong]
    order = rng.permutation(4)
    lines = [f"{LETTERS[at]}. {options[which]}" for at, which in enumerate(order)]
    return "\n".join(lines), LETTERS[int(np.flatnonzero(order == 0)[0])]


FORM = "Think step by step. Then end with the letter of one option in the form 'Final Answer: X'."


class FourOptions:
    """Reading, judging and guessing; a family adds `make`."""

    def extract(self, text: str) -> str | None:
        """Return the letter after the last "Final Answer:", or None."""
        found = _LETTER.match(last_final(text) or "")
        return found[1] if found else None

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Compare letters."""
        return bool(answer == truth["letter"])

    def solve(self, instance: Instance) -> str:
        """Write the right letter."""
        return f"Final Answer: {instance.truth['letter']}"

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Write a uniform letter."""
        return f"Final Answer: {LETTERS[int(rng.integers(4))]}"

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Say nothing: with four options anything would tell."""
        if answer is None:
            return "No answer in the asked form was found."
        return "That option is not right."
