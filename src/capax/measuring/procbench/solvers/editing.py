"""Sort, Substitute, PushPop, Rotate, FillWord and the like, followed to the letter."""

from __future__ import annotations

import re

from capax.measuring.procbench.problem import LETTERS, State
from capax.measuring.procbench.solvers.reading import integers, items, parts


def sort(question: str) -> list[State]:
    """Swap letters into place, from a to z."""
    (text,) = parts(r"String: (\w+)", question)
    characters = list(text)
    states: list[State] = []
    position = 0
    for letter in LETTERS:
        for i in range(position, len(characters)):
            if characters[i] != letter:
                continue
            characters[i], characters[position] = characters[position], characters[i]
            position += 1
            if "".join(characters) != text:
                text = "".join(characters)
                states.append(text)
    return states


def substitute(question: str) -> list[State]:
    """Replace one position per step by the table."""
    pairs, text = parts(r"Pairs:\n(.*?)\nString:\n(\w+)", question)
    table = dict(re.findall(r"\((\w), (\w)\)", pairs))
    states: list[State] = []
    for i in range(len(text)):
        text = text[:i] + table.get(text[i], text[i]) + text[i + 1 :]
        states.append(text)
    return states


def push_pop(question: str) -> list[State]:
    """Push and pop at the ends."""
    text, actions = parts(r"Initial string: (\w*)\nActions: (.*)", question)
    states: list[State] = []
    for action in items(actions):
        if action == "pop_left":
            text = text[1:]
        elif action == "pop_right":
            text = text[:-1]
        elif action.startswith("push_left"):
            text = action[-2] + text
        else:
            text = text + action[-2]
        states.append(text)
    return states


def rotate(question: str) -> list[State]:
    """Rotate s[m..n-1] right by one, per pair."""
    text, pairs = parts(r"String:\n(\w+)\nIndices:\n(.*)", question)
    states: list[State] = []
    numbers = integers(pairs)
    for m, n in zip(numbers[::2], numbers[1::2], strict=True):
        inside = text[m:n]
        text = text[:m] + inside[-1:] + inside[:-1] + text[n:]
        states.append(text)
    return states


def fill_word(question: str) -> list[State]:
    """Replace [k] by its word."""
    sentence, pairs = parts(r"Sentence:\n(.*?)\nList:\n\[(.*)\]", question)
    states: list[State] = []
    for number, word in re.findall(r"\((\d+), (\w+)\)", pairs):
        sentence = sentence.replace(f"[{number}]", word, 1)
        states.append(sentence)
    return states


def delete_char(question: str) -> list[State]:
    """Remove the first occurrence of one character per step."""
    text, lines = parts(r"String: (\w+)\nSteps: ?\n(.*)", question)
    states: list[State] = []
    for character in re.findall(r"^\d+\. (\w)$", lines, re.MULTILINE):
        at = text.index(character)
        text = text[:at] + text[at + 1 :]
        states.append(text)
    return states


def delete_word(question: str) -> list[State]:
    """Remove the first occurrence of one word per step."""
    sentence, listed = parts(r"Sentence:\n(.*?)\nWords: \[(.*)\]", question)
    words = sentence.split()
    states: list[State] = []
    for word in items(listed):
        at = words.index(word)
        words = words[:at] + words[at + 1 :]
        states.append(" ".join(words))
    return states


def move_cyclic(question: str) -> list[State]:
    """Turn the array place by place."""
    array, operations = parts(r"Initial array:\n([x-]+)\nOperations: \[(.*)\]", question)
    states: list[State] = []
    for direction, amount in re.findall(r"\((left|right), (\d+)\)", operations):
        for _ in range(int(amount)):
            array = array[1:] + array[0] if direction == "left" else array[-1] + array[:-1]
        states.append(array)
    return states
