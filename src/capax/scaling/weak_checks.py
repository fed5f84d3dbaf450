"""Checks of a whole number that let some wrong ones through: how soundly depends on how models err.

A model that multiplies digit by digit often errs in a single digit. A wrong digit changes the
remainder by 3 in 73 % of cases and by 9 in 98 %, and one of the leading digits goes unseen by a
check of the last ones: for experiments with imperfect verifiers (arXiv 2411.17501).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

MAX_DIGITS = 100


def _whole(text: str) -> int | None:
    digits = text.strip()
    if not digits.removeprefix("-").isascii() or not digits.removeprefix("-").isdigit():
        return None
    return int(digits) if len(digits) <= MAX_DIGITS else None


def _remainder(divisor: int) -> Callable[[int, int], bool]:
    return lambda answer, truth: answer % divisor == truth % divisor


def _last(n_digits: int) -> Callable[[int, int], bool]:
    return lambda answer, truth: abs(answer) % 10**n_digits == abs(truth) % 10**n_digits


def _first_digit(answer: int, truth: int) -> bool:
    return len(str(answer)) == len(str(truth)) and str(answer)[0] == str(truth)[0]


WEAK: Mapping[str, Callable[[int, int], bool]] = {
    "mod3": _remainder(3),
    "mod9": _remainder(9),
    "last_digit": _last(1),
    "last_two_digits": _last(2),
    "first_digit": _first_digit,
}


def outcome_of(name: str) -> Callable[[str, str], str]:
    """Return what decides about (answer, reference): "passed", or why not."""
    passes = WEAK[name]

    def outcome(answer: str, reference: str) -> str:
        given, truth = _whole(answer), _whole(reference)
        if given is None or truth is None:
            return "no whole number"
        return "passed" if passes(given, truth) else "failed"

    return outcome
