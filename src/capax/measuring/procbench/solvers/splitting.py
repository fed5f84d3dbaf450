"""Split1, Split2, Compose, Decompose, followed to the letter."""

from __future__ import annotations

import re

from capax.measuring.procbench.problem import State
from capax.measuring.procbench.solvers.reading import integers, items, parts


def split1(question: str) -> list[State]:
    """Cut at positions of the original string."""
    text, positions = parts(r"String:\n(\w+)\nPositions:\n(.*)", question)
    pieces = [text]
    states: list[State] = []
    for position in integers(positions):
        before = 0
        for i, piece in enumerate(pieces):
            if before < position < before + len(piece):
                cut = position - before
                pieces = [*pieces[:i], piece[:cut], piece[cut:], *pieces[i + 1 :]]
                break
            before += len(piece)
        states.append(pieces)
    return states


def split2(question: str) -> list[State]:
    """Cut piece i at its position j."""
    text, pairs = parts(r"String:\n(\w+)\nIndices:\n(.*)", question)
    pieces = [text]
    states: list[State] = []
    numbers = integers(pairs)
    for which, cut in zip(numbers[::2], numbers[1::2], strict=True):
        piece = pieces[which]
        pieces = [*pieces[:which], piece[:cut], piece[cut:], *pieces[which + 1 :]]
        states.append(pieces)
    return states


def compose(question: str) -> list[State]:
    """Merge the rightmost pair that a rule fits, until none does."""
    rules_text, initial = parts(r"Rules:\n(.*?)\nInitial state:\n(.*)", question)
    rules = re.findall(r"(\w), (\w) -> (\w)", rules_text)
    state = items(initial)
    states: list[State] = []
    while (step := _merge(state, rules)) is not None:
        state = step
        states.append(state)
    return states


def _merge(state: list[str], rules: list[tuple[str, str, str]]) -> list[str] | None:
    for right in range(len(state) - 1, 0, -1):
        for a, b, c in rules:
            if state[right - 1] == a and state[right] == b:
                return [*state[: right - 1], c, *state[right + 1 :]]
    return None


def decompose(question: str) -> list[State]:
    """Replace the leftmost character that a rule fits, until none does."""
    text, rules_text = parts(r"characters: (\w+)\nrules:\n(.*)", question)
    rules = re.findall(r"(\w) -> (\w\w)", rules_text)
    states: list[State] = []
    while True:
        for i, character in enumerate(text):
            pair = next((new for old, new in rules if old == character), None)
            if pair is not None:
                text = text[:i] + pair + text[i + 1 :]
                states.append(text)
                break
        else:
            return states
