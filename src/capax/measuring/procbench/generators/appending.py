"""Tasks that build a result piece by piece: Gather, Copy, Encode, Rhythm, Compare, Decode."""

from __future__ import annotations

from itertools import accumulate, takewhile

from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.generators.drawn import Drawn, listed
from capax.measuring.procbench.problem import LETTERS


def gather(draws: Draws, steps: int) -> Drawn:
    """2 to 20 strings of 5 to 10 characters; pieces of them are joined."""
    strings = [draws.mixed(draws.integer(5, 10)) for _ in range(draws.integer(2, 20))]
    places, pieces = [], []
    for _ in range(steps):
        which = draws.integer(0, len(strings) - 1)
        start = draws.integer(0, len(strings[which]) - 1)
        n = draws.integer(1, len(strings[which]) - start)
        places.append((which, start, n))
        pieces.append(strings[which][start : start + n])
    question = f"Strings: [{listed(strings)}]\nSets of Numbers: [{listed(places)}]"
    return Drawn(question, "", list(accumulate(pieces)))


def copy(draws: Draws, steps: int) -> Drawn:
    """3 to 25 strings of 5 to 20 characters; some are joined."""
    strings = [draws.mixed(draws.integer(5, 20)) for _ in range(draws.integer(3, 25))]
    indices = [draws.integer(0, len(strings) - 1) for _ in range(steps)]
    question = f"Strings: [{listed(strings)}]\nIndices: [{listed(indices)}]"
    return Drawn(question, "", list(accumulate(strings[i] for i in indices)))


def encode(draws: Draws, steps: int) -> Drawn:
    """Runs of 1 to 9 equal bits, written as bit_length."""
    runs = _runs(draws, steps)
    codes = [f"{bit}_{n}" for bit, n in runs]
    text = "".join(bit * n for bit, n in runs)
    return Drawn(f"String:\n{text}", "", [codes[: i + 1] for i in range(steps)])


def decode(draws: Draws, steps: int) -> Drawn:
    """The opposite of Encode: bit x length is written out."""
    runs = _runs(draws, steps)
    sentence = " ".join(f"{bit}x{n}" for bit, n in runs)
    return Drawn(f"Sentence: {sentence}", "", list(accumulate(bit * n for bit, n in runs)))


def _runs(draws: Draws, n: int) -> list[tuple[str, int]]:
    first = draws.integer(0, 1)
    return [(str((first + i) % 2), draws.integer(1, 9)) for i in range(n)]


def rhythm(draws: Draws, steps: int) -> Drawn:
    """4 to 6 digits and 8 letters of 2 to 5 kinds, each repeated, are interleaved."""
    numbers = [draws.integer(0, 9) for _ in range(draws.integer(4, 6))]
    kinds = LETTERS[: draws.integer(2, 5)]
    letters = [draws.choice(kinds) for _ in range(8)]
    pairs = (
        f"{number}{letter}"
        for _, number, letter in zip(
            range(steps), numbers * steps, letters * steps, strict=False
        )  # longer than needed
    )
    question = f"Sequence 1: {listed(numbers)}\nSequence 2: {listed(letters)}\nN: {steps}"
    return Drawn(question, "", list(accumulate(pairs)))


def compare(draws: Draws, steps: int) -> Drawn:
    """Candidates share a prefix with the target, up to the first that equals it."""
    target = draws.letters(steps + 1)
    candidates = [target]
    for _ in range(draws.integer(steps, steps + 9)):
        kept = max(1, draws.integer(0, len(target)))
        candidates.append(target[:kept] + draws.letters(len(target) - kept))
    candidates = draws.shuffled(candidates)
    n = candidates.index(target) + 1
    prefixes = [_shared_beginning(target, candidate) for candidate in candidates[:n]]
    question = f"Target: {target}\nCandidate: {listed(candidates)}"
    return Drawn(question, [""], [*prefixes[:-1], prefixes])


def _shared_beginning(a: str, b: str) -> str:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True))
    return "".join(letter for letter, _ in pairs)
