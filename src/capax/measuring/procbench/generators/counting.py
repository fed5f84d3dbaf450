"""Tasks on numbers and counts: Count, Search, Count2, Cumulate, FindCyclic."""

from __future__ import annotations

import operator
from collections import Counter
from itertools import accumulate

from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.generators.drawn import Drawn, listed
from capax.measuring.procbench.problem import DIGITS, LETTERS
from capax.measuring.procbench.words import VOCABULARY


def count(draws: Draws, steps: int) -> Drawn:
    """Per string the number of letters times its digits read as a number; then the sum."""
    strings = [draws.mixed(draws.integer(4, 9), letter_weight=0.75) for _ in range(steps - 1)]
    rows, total = [], 0
    for text in strings:
        digits = text.translate({ord(letter): None for letter in LETTERS})
        n_letters, number = len(text) - len(digits), int(digits or "0")
        rows.append([text, str(n_letters), str(number), str(n_letters * number)])
        total += n_letters * number
    return Drawn(f"Strings:\n{strings}", "0", [*rows, total])


def search(draws: Draws, steps: int) -> Drawn:
    """Count pairs of letters in ten strings, which hold up to two of them by design."""
    pairs = [draws.letters(2) for _ in range(steps)]
    strings = []
    for _ in range(10):
        length, n_planted = draws.integer(3, 10), draws.integer(0, 2)
        planted = "".join(draws.choice(pairs) for _ in range(n_planted))
        rest = draws.letters(length - n_planted)
        place = draws.integer(0, len(rest))
        strings.append(rest[:place] + planted + rest[place:])
    counts = [[len(text.split(pair)) - 1 for text in strings] for pair in pairs]
    states = list(accumulate(counts, lambda a, b: list(map(operator.add, a, b))))
    question = f"Strings: [{listed(strings)}]\nSubstrings: [{listed(pairs)}]"
    return Drawn(question, [0] * 10, states)


def count2(draws: Draws, steps: int) -> Drawn:
    """Letters of the alphabet, counted after each of a bag of different words."""
    words = draws.sample(VOCABULARY, steps)
    tallies = accumulate((Counter(word) for word in words), operator.add)
    states = [[tally[letter] for letter in LETTERS] for tally in tallies]
    return Drawn(f"Sentence:\n{' '.join(words)}", [0] * 26, states)


def cumulate(draws: Draws, steps: int) -> Drawn:
    """Additions of 0 to 9 and multiplications by 1 to 5."""
    start = draws.integer(1, 9)
    names, factors = [], []
    for _ in range(steps):
        if draws.integer(0, 1):
            factors.append((1, draws.integer(0, 9)))
            names.append(f"Add {factors[-1][1]}")
        else:
            factors.append((draws.integer(1, 5), 0))
            names.append(f"Multiply {factors[-1][0]}")
    states, now = [], start
    for times, plus in factors:
        now = now * times + plus
        states.append(now)
    return Drawn(f"N = {start}\nOperations: [{listed(names)}]", start, states)


def find_cyclic(draws: Draws, steps: int) -> Drawn:
    """Walk to the right in a ring of different characters while a number counts down."""
    ring = draws.sample(LETTERS + DIGITS, draws.integer(1, steps + 4))
    start = draws.integer(0, len(ring) - 1)
    around = [ring[(start + i) % len(ring)] for i in range(steps + 1)]
    rows = [[around[i], str(steps - i)] for i in range(steps)]
    question = f"String: {''.join(ring)}\nCommand: {rows[0]}"
    return Drawn(question, rows[0], [*rows[1:], around[-1]])
