"""Reads the parts of a question from its text."""

from __future__ import annotations

import re

from capax.errors import ConfigError


def parts(pattern: str, question: str) -> tuple[str, ...]:
    """Return the groups of a pattern that the whole question must match (`.` matches newlines).

    Raises ConfigError if it does not: the question is of another task, or damaged.
    """
    match = re.fullmatch(pattern, question.strip(), re.DOTALL)
    if match is None:
        raise ConfigError(f"the question {question[:80]!r} does not have the form of its task")
    return match.groups()


def items(text: str) -> list[str]:
    """Split what stands between commas."""
    return [part.strip() for part in text.split(",")]


def integers(text: str) -> list[int]:
    """Return all numbers of a text, in order."""
    return [int(number) for number in re.findall(r"\d+", text)]
