"""The one of n answers that the model itself finds best.

"Think Deep, Think Fast" (2025, arXiv 2504.14047), best-of-N with self-judgement. `judge=score`:
each answer is graded 0 to 10 by itself; `judge=list`: the model sees all answers and names one. The
judge sees the question and the answers, nothing else; an unreadable grade is 0, an unreadable name
the vote's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from capax.decoding.params import SamplingParams
from capax.endpoints import Choice
from capax.methods import SPELLED, Method, register
from capax.scaling.strategies.majority import sampled
from capax.scaling.strategies.strategy import (
    Prompt,
    Purse,
    check_range,
    followed_by,
    with_answers,
)
from capax.scaling.strategies.voting import winner

VERDICT_TOKENS = 12
_GRADE = re.compile(r"(?<![\d.])(10|\d)(?![\d])")
LIST_REQUEST = "Which of these answers is the best? Reply with its number only, 1 to {}."
GRADE_REQUEST = (
    "Grade the answer above from 0 (certainly wrong) to 10 (certainly right). "
    "Reply with the number only."
)


@dataclass(frozen=True)
class BestOf:
    """`n` samples and their judgement."""

    n: int = field(default=8, metadata=SPELLED)
    judge: Literal["score", "list"] = "score"
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_range("n", self.n, 1, 128)
        check_range("temperature", self.temperature, 0.01, 100.0)

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        params = sampled(purse.params, self.temperature)
        choices = purse.need(await purse.ask(prompt, self.n, params=params))
        if len(choices) == 1:
            return choices[0], choices
        verdict = SamplingParams(max_tokens=VERDICT_TOKENS, temperature=0.0)
        if self.judge == "list":
            said = await purse.ask(
                with_answers(prompt, [c.text for c in choices], LIST_REQUEST.format(len(choices))),
                purpose="judge",
                params=verdict,
            )
            number = _number(said[0].text if said else "", 1, len(choices))
            return (winner(choices) if number is None else choices[number - 1]), choices
        requests = [followed_by(prompt, c.text, GRADE_REQUEST) for c in choices]
        replies = await purse.ask_each(requests, purpose="judge", params=verdict)
        if not any(replies):
            return winner(choices), choices
        grades = [_number(r.text, 0, 10) if r else None for r in replies]
        best = max(g or 0 for g in grades)
        return winner(
            [c for c, g in zip(choices, grades, strict=True) if (g or 0) == best]
        ), choices


def _number(text: str, low: int, high: int) -> int | None:
    """Return the first whole number of a reply, if it is in range."""
    found = re.search(r"\d+", text) if high > 10 else _GRADE.search(text)
    number = int(found.group()[:9]) if found else None
    return number if number is not None and low <= number <= high else None


register(
    Method(
        "best", "strategy", "Think Deep, Think Fast (2025, arXiv 2504.14047)",
        "The one of n samples that the model itself grades best.", BestOf,
    )
)  # fmt: skip
