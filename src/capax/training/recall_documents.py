"""Documents with something to remember: facts early, other text, then questions about the facts.

Plain text rewards remembering the last sentence; these reward remembering what was said first.
Training and evaluation use different sentences, kinds of keys and kinds of values, so that a gate
cannot pass by knowing one sentence pattern.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class FactTemplate:
    """`fact` states `value` of `key`; `question` ends right before the value is said again."""

    fact: str
    question: str
    keys: Sequence[str]
    value: Callable[[random.Random], str]


def _digits(n: int) -> Callable[[random.Random], str]:
    return lambda draw: "".join(str(draw.randrange(10)) for _ in range(n))


def _one_of(words: str) -> Callable[[random.Random], str]:
    return lambda draw: draw.choice(words.split())


_ROOMS = [
    "library",
    "cellar",
    "archive",
    "workshop",
    "kitchen",
    "laboratory",
    "chapel",
    "gallery",
    "attic",
    "stable",
]
_PEOPLE = [
    "Anna",
    "Bruno",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karla",
    "Leon",
]
_SHIPS = ["Aurora", "Borealis", "Cormorant", "Dauntless", "Endeavour", "Falcon", "Gannet", "Heron"]

TRAINING = (
    FactTemplate(
        "The door code of the {key} is {value}.",
        "Question: what is the door code of the {key}? Answer: the door code of the {key} is",
        _ROOMS,
        _digits(4),
    ),
    FactTemplate(
        "Remember that {key} lives in {value}.",
        "As was said at the beginning, {key} lives in",
        _PEOPLE,
        _one_of("Paris Madrid Oslo Vienna Dublin Prague Athens Lisbon Warsaw Cairo Boston Lima"),
    ),
    FactTemplate(
        "The favourite colour of {key} is {value}.",
        "The favourite colour of {key}, as you know, is",
        _PEOPLE,
        _one_of("red blue green yellow purple orange brown black white pink"),
    ),
)

HELD_OUT = (
    FactTemplate(
        "Please note: the ship {key} carries exactly {value} containers.",
        "How many containers does the ship {key} carry? The ship {key} carries exactly",
        _SHIPS,
        _digits(3),
    ),
    FactTemplate(
        "According to the register, the owner of the {key} keeps a {value}.",
        "According to the register, the owner of the {key} keeps a",
        ["bakery", "mill", "tavern", "forge", "brewery", "orchard", "dairy", "vineyard"],
        _one_of("horse parrot goat rabbit donkey falcon turtle sheep"),
    ),
)


@dataclass(frozen=True)
class RecallDocument:
    """`tokens` [n_tokens] ends with the answer of the last question, from `answer_begin` on."""

    tokens: list[int]
    answer_begin: int
    answer: str


def recall_document(
    encode: Encode,
    filler: Sequence[int],
    n_tokens: int,
    draw: random.Random,
    templates: Sequence[FactTemplate] = TRAINING,
    n_facts: int = 1,
) -> RecallDocument:
    """Return a document of exactly `n_tokens`: facts in its first tenth or so, asked at its end.

    `encode` turns text into ids without special tokens; `filler`: ids of ordinary text, at least
    `n_tokens` of them.
    """
    template = draw.choice(templates)
    keys = draw.sample(list(template.keys), n_facts)
    values = [template.value(draw) for _ in keys]
    facts = encode(
        " ".join(template.fact.format(key=k, value=v) for k, v in zip(keys, values, strict=True))
    )
    questions: list[int] = []
    order = draw.sample(range(n_facts), n_facts)
    for i in order:
        questions += encode("\n" + template.question.format(key=keys[i]))
        answer = encode(f" {values[i]}.")
        questions += answer
    begin = draw.randrange(max(n_tokens // 10 - len(facts), 1))
    n_filler = n_tokens - len(facts) - len(questions)
    start = draw.randrange(len(filler) - n_filler + 1)
    text = list(filler[start : start + n_filler])
    tokens = text[:begin] + facts + text[begin:] + questions
    return RecallDocument(tokens, n_tokens - len(answer), values[order[-1]])


def split_tokens(ids: Sequence[int], hold_out: float) -> tuple[list[int], list[int]]:
    """Return what is trained on and what is held out: the end of the text."""
    at = len(ids) - round(hold_out * len(ids))
    return list(ids[:at]), list(ids[at:])
