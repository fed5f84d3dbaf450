"""Votes: which answers are equal, what a vote weighs, and who wins.

All of it is a function of the answers at hand and costs no token. Ties go to the answer that came
first; samples are exchangeable, so this favours none. Of an answer that was cut off, by its limit
or the budget, the last number is no answer: it votes only for what it marks as its answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from capax.endpoints import Choice
from capax.errors import ConfigError
from capax.scaling.calibration import Marks
from capax.scaling.checkers import MAX_CHARS, extract_choice, extract_exact, extract_number
from capax.scaling.markers import features_of

Reading = Literal["auto", "number", "choice", "text"]
Weighing = Literal["one", "short", "confidence", "marked", "marked_odds"]
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_SAID = re.compile(r"answer(?:\s+is)?\s*[:=]?\s*\**\s*([^\n]+)", re.IGNORECASE)
_MARKED = re.compile(r"####\s*([^\n]+)")
_SPACE = re.compile(r"\s+")


def answer_of(text: str, reading: Reading = "auto") -> str | None:
    """Return what a vote for this text is a vote for; None: it votes for nothing.

    'auto' takes what stands in the last \\boxed{}, after the last '####' or the last 'answer is'
    (a number or a letter if there is one), else the last number, else the text without regard to
    case, white space and a final full stop.
    """
    if reading == "number":
        return extract_number(text)
    if reading == "choice":
        return extract_choice(text)
    if reading == "text":
        return extract_exact(text) or None
    text = text[-MAX_CHARS:]
    return _marked_answer(text) or extract_number(text) or _plain(text)


def vote_of(choice: Choice, reading: Reading = "auto") -> str | None:
    """Return what this answer votes for, which takes that it ended or marked its answer."""
    if choice.finish_reason != "length":
        return answer_of(choice.text, reading)
    return _marked_answer(choice.text[-MAX_CHARS:]) if reading == "auto" else None


def _marked_answer(text: str) -> str | None:
    for form in (_BOXED, _MARKED, _SAID):
        found = form.findall(text)
        if found and found[-1].strip():
            return extract_number(found[-1]) or _letter(found[-1]) or _plain(found[-1])
    return None


def voters(choices: Sequence[Choice], reading: Reading = "auto") -> list[Choice]:
    """Return the answers that vote for something; all of them if none does."""
    able = [choice for choice in choices if vote_of(choice, reading) is not None]
    return able or list(choices)


def _letter(text: str) -> str | None:
    letter = re.match(r"[(\[]?([A-Za-z])(?:[)\].:]|\s*$)", text.strip())
    return letter.group(1).upper() if letter else None


def _plain(text: str) -> str | None:
    return _SPACE.sub(" ", text).strip(" *.").casefold() or None


def length_of(choice: Choice) -> int:
    """Return an answer's tokens, or its characters / 4 where the endpoint does not say; >= 1."""
    return max(1, choice.n_tokens if choice.n_tokens is not None else len(choice.text) // 4)


def weights(
    choices: Sequence[Choice], weighing: Weighing, power: float = 1.0,
    marks: Marks | None = None, reading: Reading = "auto",
) -> list[float]:  # fmt: skip
    """Return the weight of each vote.

    'one': 1. 'short': length ** -power. 'confidence': the mean probability of the answer's tokens
    (geometric), to `power`. 'marked': log-odds by `marks` for as many answers as there are,
    'marked_odds': the odds. Raises ConfigError if an answer brought no log-probabilities.
    """
    if weighing == "one":
        return [1.0] * len(choices)
    if weighing == "short":
        return [length_of(c) ** -power for c in choices]
    if weighing in ("marked", "marked_odds"):
        if marks is None:
            raise ConfigError(
                f"votes={weighing} needs marks=bias/length/hedging/thinking/discourse"
            )
        features = np.stack([features_of(c.text, length_of(c)) for c in choices])
        n_answers = len({vote_of(c, reading) for c in choices} - {None})
        return list(map(float, marks.weights(features, n_answers, odds=weighing != "marked")))
    return [_confidence(c) ** power for c in choices]


def _confidence(choice: Choice) -> float:
    if choice.logprobs is None:
        raise ConfigError(
            "votes weighed by confidence need log-probabilities, which this endpoint does not give"
        )
    return math.exp(math.fsum(choice.logprobs) / max(1, len(choice.logprobs)))


def shortest(choices: Sequence[Choice], m: int) -> list[Choice]:
    """Return the `m` shortest answers, in their own order."""
    kept = sorted(range(len(choices)), key=lambda i: (length_of(choices[i]), i))[:m]
    return [choices[i] for i in sorted(kept)]


def winner(
    choices: Sequence[Choice], votes: Sequence[float] | None = None, reading: Reading = "auto"
) -> Choice:
    """Return the first answer of those with the most votes.

    If all were cut off, what can be read counts; if nothing can, the first.
    """
    answers = [vote_of(c, reading) for c in choices]
    if not any(answers):
        answers = [answer_of(c.text, reading) for c in choices]
    votes = [1.0] * len(choices) if votes is None else votes
    sums: dict[str, list[float]] = {}
    for text, vote in zip(answers, votes, strict=True):
        if text is not None:
            sums.setdefault(text, []).append(vote)
    if not sums:
        return choices[0]
    totals = {text: math.fsum(parts) for text, parts in sums.items()}
    best = max(totals.values())
    leading = next(text for text, total in totals.items() if total == best)
    return choices[answers.index(leading)]
