"""Gather, Copy, Encode, Rhythm, Compare, Decode, followed to the letter."""

from __future__ import annotations

from capax.measuring.procbench.problem import State
from capax.measuring.procbench.solvers.reading import integers, items, parts


def gather(question: str) -> list[State]:
    """Append the n characters from index i of string N, per triple."""
    strings, triples = parts(r"Strings: \[(.*?)\]\nSets of Numbers: \[(.*)\]", question)
    texts, numbers = items(strings), integers(triples)
    states: list[State] = []
    text = ""
    for at in range(0, len(numbers), 3):
        which, start, n = numbers[at : at + 3]
        text = text + texts[which][start : start + n]
        states.append(text)
    return states


def copy(question: str) -> list[State]:
    """Append the string with each index."""
    strings, indices = parts(r"Strings: \[(.*?)\]\nIndices: \[(.*)\]", question)
    texts = items(strings)
    states: list[State] = []
    text = ""
    for index in integers(indices):
        text = text + texts[index]
        states.append(text)
    return states


def encode(question: str) -> list[State]:
    """Append one run of equal bits per step."""
    (bits,) = parts(r"String:\n([01]+)", question)
    states: list[State] = []
    codes: list[str] = []
    start = 0
    while start < len(bits):
        end = start
        while end < len(bits) and bits[end] == bits[start]:
            end += 1
        codes.append(f"{bits[start]}_{end - start}")
        states.append(list(codes))
        start = end
    return states


def rhythm(question: str) -> list[State]:
    """Append a number and a letter per step."""
    first, second, n = parts(r"Sequence 1: (.*?)\nSequence 2: (.*?)\nN: (\d+)", question)
    numbers, letters = items(first), items(second)
    states: list[State] = []
    text = ""
    for k in range(int(n)):
        text += numbers[k % len(numbers)] + letters[k % len(letters)]
        states.append(text)
    return states


def compare(question: str) -> list[State]:
    """Note shared beginnings until a candidate is the target."""
    target, candidates = parts(r"Target: (\w+)\nCandidate: (.*)", question)
    states: list[State] = []
    found: list[str] = []
    for candidate in items(candidates):
        n = 0
        while n < min(len(target), len(candidate)) and target[n] == candidate[n]:
            n += 1
        found.append(target[:n])
        if candidate == target:
            states.append(found)
            break
        states.append(target[:n])
    return states


def decode(question: str) -> list[State]:
    """Write out one run per step."""
    (sentence,) = parts(r"Sentence: (.*)", question)
    states: list[State] = []
    text = ""
    for piece in sentence.split():
        character, times = piece.split("x")
        for _ in range(int(times)):
            text += character
        states.append(text)
    return states
