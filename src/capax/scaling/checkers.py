"""Whether an answer is right: small checkers of text, with the answer they read out of it.

A checker extracts an answer from a sample, in one spelling for equal answers, and compares it with
the reference. Answers are what selectors vote on, so extraction sees no reference.

- `exact`: the text without surrounding white space.
- `numeric`: the number after '####' if there is one (GSM8K), else the last number of the text.
- `choice`: the letter A to Z after 'answer is', in parentheses or brackets, or alone.
- `symbolic`: the formula in the last \\boxed{}, compared by meaning (`symbolic`).
- `unit_tests`: a program, run against the tests of the reference in the sandbox (`unit_tests`).
- `mod3`, `mod9`, `last_digit`, `last_two_digits`, `first_digit`: of whole numbers, and wrong on
  purpose (`weak_checks`).
- `3sat`, `tsp`, `calendar`, `maze`, `spatial`, `arithmetic`: generated tasks (`complex`).

Samples are untrusted and may be long: only the last 20,000 characters are searched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from capax.errors import ConfigError
from capax.scaling import symbolic, unit_tests, weak_checks
from capax.scaling.complex import families

MAX_CHARS = 20_000
MAX_DIGITS = 100
_MARKED = re.compile(r"#### ?(-?[$0-9.,]+)")
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_LETTERS = (
    re.compile(r"answer(?:\s+is)?\s*:?\s*[(\[*]*([A-Z])\b", re.IGNORECASE),
    re.compile(r"[(\[]([A-Z])[)\]]"),
    re.compile(r"^\W*([A-Z])\b(?![a-z' ])", re.MULTILINE),
    re.compile(r"\b([B-HJ-Z])\b"),  # A and I are words
)


class Judged(NamedTuple):
    """The answer a checker read, whether it is right, and how a check that runs something ended."""

    answer: str | None
    correct: bool
    outcome: str | None = None  # "passed" is right; None where answers are only compared


@dataclass(frozen=True, slots=True)
class Checker:
    """A way to judge text. `version` changes when a verdict could.

    `outcome` decides about (answer, reference) where equality does not, and is "passed" for a right
    one; `prepare` raises if that will not work here, so that nothing is sampled in vain.
    """

    name: str
    version: int
    extract: Callable[[str], str | None]
    outcome: Callable[[str, str], str] | None = None
    prepare: Callable[[], None] | None = None
    validate: Callable[[str], object] | None = None  # of a reference; default: it has an answer

    def judge(self, text: str, reference: str) -> Judged:
        """Read the answer in a text and decide whether it is right."""
        answer = self.extract(text)
        if answer is None:
            return Judged(None, False)
        if self.outcome is None:
            return Judged(answer, answer == self.truth(reference))
        outcome = self.outcome(answer, reference)
        return Judged(answer, outcome == "passed", outcome)

    def check(self, text: str, reference: str) -> bool:
        """Say whether the answer in a text is right."""
        return self.judge(text, reference).correct

    def check_reference(self, reference: str) -> None:
        """Raise ConfigError for a reference that nothing could be compared with."""
        if self.validate is None:
            self.truth(reference)
        else:
            self.validate(reference)

    def truth(self, reference: str) -> str:
        """Return the reference in the spelling of answers. Raises ConfigError if it has none."""
        answer = self.extract(reference)
        if answer is None:
            raise ConfigError(
                f"the reference {reference!r:.80} holds nothing that the checker {self.name!r} "
                "reads; give another reference or checker"
            )
        return answer


def extract_exact(text: str) -> str | None:
    """Return the text without white space around it; None if nothing is left."""
    return text.strip() or None


def extract_number(text: str) -> str | None:
    """Return the number a text ends with as digits without needless zeros, or None."""
    text = text[-MAX_CHARS:]
    marked = _MARKED.findall(text)
    found = marked[-1:] or _NUMBER.findall(text)[-1:]
    if not found:
        return None
    digits = found[0].replace(",", "").replace("$", "").rstrip(".")
    if len(digits) > MAX_DIGITS:
        return None
    try:
        value = Decimal(digits)
    except InvalidOperation:
        return None
    if value == 0:
        return "0"
    spelled = f"{value:f}"
    return spelled.rstrip("0").rstrip(".") if "." in spelled else spelled.lstrip("+")


def extract_choice(text: str) -> str | None:
    """Return the letter a text chooses, or None. The last one of the plainest form counts."""
    text = text[-MAX_CHARS:]
    for form in _LETTERS:
        found = form.findall(text)
        if found:
            return str(found[-1]).upper()
    return None


CHECKERS: Mapping[str, Checker] = {
    checker.name: checker
    for checker in (
        Checker("exact", 1, extract_exact),
        Checker("numeric", 1, extract_number),
        Checker("choice", 1, extract_choice),
        Checker("symbolic", 1, symbolic.extract_formula, symbolic.outcome_of, symbolic.prepare),
        Checker(
            "unit_tests", 1, unit_tests.extract_program, unit_tests.outcome_of,
            unit_tests.prepare, unit_tests.problem_of,
        ),
        *(
            Checker(name, 1, extract_number, weak_checks.outcome_of(name))
            for name in weak_checks.WEAK
        ),
        *(
            Checker(f.name, 1, f.extract, families.outcome_of, None, families.instance_of)
            for f in families.FAMILIES.values()
        ),
    )
}  # fmt: skip


def checker_named(name: str) -> Checker:
    """Return a checker. Raises ConfigError for an unknown name."""
    try:
        return CHECKERS[name]
    except KeyError:
        known = ", ".join(CHECKERS)
        raise ConfigError(f"there is no checker {name!r:.60}; known are {known}") from None
