"""Count, Search, Count2, Cumulate, FindCyclic, followed to the letter."""

from __future__ import annotations

import re

from capax.measuring.procbench.problem import LETTERS, State
from capax.measuring.procbench.solvers.reading import items, parts


def count(question: str) -> list[State]:
    """Multiply letters by digits read as a number, per string; then add up."""
    (strings,) = parts(r"Strings:\n\[(.*)\]", question)
    states: list[State] = []
    total = 0
    for text in re.findall(r"'(\w+)'", strings):
        n_letters, number = 0, 0
        for character in text:
            if character in LETTERS:
                n_letters += 1
            else:
                number = 10 * number + int(character)
        states.append([text, str(n_letters), str(number), str(n_letters * number)])
        total += n_letters * number
    return [*states, total]


def search(question: str) -> list[State]:
    """Add the occurrences of one substring per step."""
    strings, substrings = parts(r"Strings: \[(.*?)\]\nSubstrings: \[(.*)\]", question)
    texts = items(strings)
    counters = [0] * len(texts)
    states: list[State] = []
    for substring in items(substrings):
        counters = [n + text.count(substring) for n, text in zip(counters, texts, strict=True)]
        states.append(counters)
    return states


def count2(question: str) -> list[State]:
    """Count the letters of one word per step."""
    (sentence,) = parts(r"Sentence:\n(.*)", question)
    counts = [0] * 26
    states: list[State] = []
    for word in sentence.split():
        for character in word.lower():
            if character in LETTERS:
                counts[LETTERS.index(character)] += 1
        states.append(list(counts))
    return states


def cumulate(question: str) -> list[State]:
    """Add or multiply."""
    start, operations = parts(r"N = (\d+)\nOperations: \[(.*)\]", question)
    number = int(start)
    states: list[State] = []
    for operation in items(operations):
        name, amount = operation.split()
        number = number + int(amount) if name == "Add" else number * int(amount)
        states.append(number)
    return states


def find_cyclic(question: str) -> list[State]:
    """Walk right around the ring until the number is zero."""
    ring, letter, start = parts(r"String: (\w+)\nCommand: \['(\w)', '(\d+)'\]", question)
    states: list[State] = []
    number = int(start)
    while number > 0:
        right = ring.index(letter) + 1
        letter = ring[right] if right < len(ring) else ring[0]
        number -= 1
        states.append([letter, str(number)] if number else letter)
    return states
