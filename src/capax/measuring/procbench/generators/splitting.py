"""Tasks on the pieces of a string: Split1, Split2, Compose, Decompose."""

from __future__ import annotations

from itertools import pairwise

from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.generators.drawn import Drawn, listed
from capax.measuring.procbench.problem import LETTERS


def split1(draws: Draws, steps: int) -> Drawn:
    """Cut at positions of the whole text."""
    text = draws.letters(draws.integer(steps + 1, 30))
    cuts = draws.sample(range(1, len(text)), steps)
    states = [_pieces(text, cuts[: i + 1]) for i in range(steps)]
    return Drawn(f"String:\n{text}\nPositions:\n{listed(cuts)}", [text], states)


def split2(draws: Draws, steps: int) -> Drawn:
    """Cut piece i at its position j: absolute cuts are drawn, then named from within."""
    text = draws.letters(draws.integer(steps + 1, 30))
    cuts: list[int] = []
    pairs, states = [], []
    for _ in range(steps):
        bounds = sorted([0, *cuts, len(text)])
        wide = [i for i, (low, high) in enumerate(pairwise(bounds)) if high - low > 1]
        piece = draws.choice(wide)
        inside = draws.integer(1, bounds[piece + 1] - bounds[piece] - 1)
        cuts.append(bounds[piece] + inside)
        pairs.append((piece, inside))
        states.append(_pieces(text, cuts))
    return Drawn(f"String:\n{text}\nIndices:\n{listed(pairs)}", [text], states)


def _pieces(text: str, cuts: list[int]) -> list[str]:
    bounds = sorted([0, *cuts, len(text)])
    return [text[low:high] for low, high in pairwise(bounds)]


def compose(draws: Draws, steps: int) -> Drawn:
    """Rules that merge two neighbours, made along a random reduction, and some that may not fit."""
    text = draws.letters(draws.integer(steps + 3, 30))
    rules = _merging_rules(draws, text, steps)
    states: list[list[str]] = []
    now = text
    while True:
        ends = [(now.rfind(pair), pair) for pair in rules]
        place, pair = max(ends)
        if place < 0:
            break
        now = now[:place] + rules[pair] + now[place + 2 :]
        states.append(list(now))
    lines = "\n".join(f"{pair[0]}, {pair[1]} -> {result}" for pair, result in rules.items())
    return Drawn(f"Rules:\n{lines}\nInitial state:\n{listed(text)}", list(text), states)


def _merging_rules(draws: Draws, text: str, steps: int) -> dict[str, str]:
    """Return pair -> letter, each pair once, in random order."""
    while True:
        n = draws.integer(max(1, steps - 5), min(len(text) - 2, steps + 5))
        rules, now = [], text
        for _ in range(n):
            place = draws.integer(0, len(now) - 2)
            letter = draws.letters(1)
            rules.append((now[place : place + 2], letter))
            now = now[:place] + letter + now[place + 2 :]
        rules += [(draws.letters(2), draws.letters(1)) for _ in range(n // 7 + 1)]
        if len(dict(rules)) == len(rules):
            return dict(draws.shuffled(rules))


def decompose(draws: Draws, steps: int) -> Drawn:
    """Rules replace a letter by two that no rule replaces."""
    text = draws.letters(draws.integer(steps + 5, steps + 15))
    present = sorted(set(text))
    keys = draws.sample(present, draws.integer(1, min(23, steps, len(present))))
    inert = [letter for letter in LETTERS if letter not in keys]
    rules = {key: draws.choice(inert) + draws.choice(inert) for key in keys}
    states = []
    for i, letter in enumerate(text):
        if letter in rules:
            done = "".join(rules.get(earlier, earlier) for earlier in text[: i + 1])
            states.append(done + text[i + 1 :])
    lines = "\n".join(f"{key} -> {value}" for key, value in rules.items())
    return Drawn(f"characters: {text}\nrules:\n{lines}", text, states)
