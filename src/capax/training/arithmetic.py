"""Arithmetic for tiny models: questions with one right answer, and texts that answer them.

Three tasks, each with a vocabulary of its own, so that a model of a million parameters can be
sampled ten thousand times:

- `multiplication`: "407*38=" to "15466", one token a digit, no steps. The more digits the
  factors have, the rarer the right answer: chances spread over decades.
- `direct`: " 7 x + 3 = 12 mod 23 :" to " 9", one token.
- `search`: the same question to a trace that tries values in random order, each with its product
  and its sum, until one fits: " 5 12 15 no 9 17 20 no ... so 9". It also learns to judge an
  answer (" ... : 9 ?" to " ok" or " bad") and to take up an earlier one (" ... : 9 again :" to a
  trace that tries it first).

Questions whose hash says so are held out: no text to learn from holds them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from capax.errors import ConfigError
from capax.training.records import END, Record, RecordTask

HELD_OUT = 16  # one question in so many is held out
PRIMES = (11, 13, 17, 19, 23)
JUDGED = 0.1  # share of records of the search task that judge
REVISED = 0.1  # and that take up an earlier answer
GRADES = ((2, 1), (2, 2), (3, 2), (3, 3), (4, 3))  # digits of the factors
_GRADE_WEIGHTS = (0.1, 0.25, 0.25, 0.25, 0.15)


class Question(NamedTuple):
    """A line of a tasks file: `capax scale sample` reads it."""

    id: str
    prompt: str
    reference: str


class Task(RecordTask, Protocol):
    """Records to learn, and questions that are held out."""

    def questions(self, n: int, seed: int) -> list[Question]:
        """Return `n` different held-out questions."""
        ...


def is_held_out(prompt: str) -> bool:
    """Say whether a question must not be learnt from, by a hash of its text."""
    return zlib.crc32(prompt.encode()) % HELD_OUT == 0


# --- multiplication -----------------------------------------------------------------------


@dataclass(frozen=True)
class Multiplication:
    """Products of two numbers, digit by digit from the left."""

    name: str = "multiplication"
    tokens: Sequence[str] = (*"0123456789", "*", "=")
    merges: Sequence[tuple[str, str]] = ()
    context_len: int = 32

    def record(self, rng: np.random.Generator) -> Record:
        while True:
            grade = rng.choice(len(GRADES), p=_GRADE_WEIGHTS)
            prompt, product = _product(rng, GRADES[grade])
            if not is_held_out(prompt):
                return Record(prompt, (*product, END))

    def questions(self, n: int, seed: int) -> list[Question]:
        """Return as many of each grade from 2 x 2 digits on, the easier ones first."""
        return self.of_grades([GRADES[1 + i * (len(GRADES) - 1) // n] for i in range(n)], seed)

    def of_grades(self, grades: Sequence[tuple[int, int]], seed: int) -> list[Question]:
        """Return a held-out question of each grade (digits of the factors), all different."""
        rng = np.random.default_rng([1, seed])
        found: dict[str, str] = {}
        for grade in grades:
            while True:
                prompt, product = _product(rng, grade)
                if is_held_out(prompt) and prompt not in found:
                    break
            found[prompt] = product
        return [Question(p.rstrip("="), p, product) for p, product in found.items()]


def _product(rng: np.random.Generator, grade: tuple[int, int]) -> tuple[str, str]:
    a, b = (int(rng.integers(10 ** (n - 1), 10**n)) for n in grade)
    if a == b or rng.random() < 0.5:
        a, b = b, a
    return f"{a}*{b}=", str(a * b)


# --- a x + b = c modulo p -----------------------------------------------------------------


class Equation(NamedTuple):
    """a x + b = c modulo p, 0 < a < p, 0 <= b, c < p: one solution, since p is a prime."""

    a: int
    b: int
    c: int
    p: int

    @property
    def x(self) -> int:
        return (self.c - self.b) * pow(self.a, -1, self.p) % self.p

    @property
    def prompt(self) -> tuple[str, ...]:
        """The question's tokens."""
        a, b, c, p = map(_number, self)
        return (a, " x", " +", b, " =", c, " mod", p, " :")

    @property
    def is_held_out(self) -> bool:
        return is_held_out("".join(self.prompt))

    def trial(self, x: int) -> tuple[str, str, str, str]:
        """Return what trying `x` writes: x, a x, a x + b, and whether that is c."""
        product = self.a * x % self.p
        value = (product + self.b) % self.p
        return _number(x), _number(product), _number(value), " yes" if value == self.c else " no"


def _number(value: int) -> str:
    return f" {value}"


_WORDS = (" x", " +", " =", " mod", " :", " yes", " no", " so", " ?", " ok", " bad", " again")


def _spaced_vocabulary() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return tokens with a space before each, and the merges that make them out of characters."""
    wholes = [*map(_number, range(max(PRIMES))), _number(max(PRIMES)), *_WORDS]
    single = sorted({c for whole in wholes for c in whole})
    merges: dict[tuple[str, str], None] = {}
    for whole in wholes:
        built = whole[1]
        for c in whole[2:]:
            merges[built, c] = None
            built += c
    merges |= {(" ", whole[1:]): None for whole in wholes}
    joined = ["".join(pair) for pair in merges]
    return (*single, *joined), tuple(merges)


_TOKENS, _MERGES = _spaced_vocabulary()


@dataclass(frozen=True)
class Direct:
    """Equations answered at once."""

    name: str = "direct"
    tokens: Sequence[str] = _TOKENS
    merges: Sequence[tuple[str, str]] = _MERGES
    context_len: int = 256

    def record(self, rng: np.random.Generator) -> Record:
        equation = _to_learn(rng)
        return Record(equation.prompt, (_number(equation.x), END))

    def questions(self, n: int, seed: int) -> list[Question]:
        return _equations(n, seed)


@dataclass(frozen=True)
class Search:
    """Equations answered by trial."""

    name: str = "search"
    tokens: Sequence[str] = _TOKENS
    merges: Sequence[tuple[str, str]] = _MERGES
    context_len: int = 256

    def record(self, rng: np.random.Generator) -> Record:
        equation, kind = _to_learn(rng), rng.random()
        if kind >= JUDGED + REVISED:
            return Record(equation.prompt, (*trace(equation, rng), END))
        x = equation.x
        if rng.random() < 0.5:
            x = (x + int(rng.integers(1, equation.p))) % equation.p
        if kind < JUDGED:
            verdict = " ok" if x == equation.x else " bad"
            return Record(judge_prompt(equation, x), (verdict, END))
        return Record(revise_prompt(equation, x), (*trace(equation, rng, first=x), END))

    def questions(self, n: int, seed: int) -> list[Question]:
        return _equations(n, seed)


def trace(equation: Equation, rng: np.random.Generator, first: int | None = None) -> list[str]:
    """Return trials in random order up to the one that fits, and the answer."""
    order = [int(x) for x in rng.permutation(equation.p)]
    if first is not None:
        order.remove(first)
        order.insert(0, first)
    tried = order[: order.index(equation.x) + 1]
    return [*(t for x in tried for t in equation.trial(x)), " so", _number(equation.x)]


def judge_prompt(equation: Equation, x: int) -> tuple[str, ...]:
    """Return the question whether `x` solves an equation."""
    return (*equation.prompt, _number(x), " ?")


def revise_prompt(equation: Equation, x: int) -> tuple[str, ...]:
    """Return the equation asked again after the answer `x`."""
    return (*equation.prompt, _number(x), " again", " :")


def _drawn(rng: np.random.Generator) -> Equation:
    p = int(rng.choice(PRIMES))
    return Equation(int(rng.integers(1, p)), int(rng.integers(p)), int(rng.integers(p)), p)


def _to_learn(rng: np.random.Generator) -> Equation:
    while (equation := _drawn(rng)).is_held_out:
        pass
    return equation


def held_out_equations(n: int, seed: int) -> list[Equation]:
    """Return `n` different equations that no text to learn from holds."""
    rng = np.random.default_rng([2, seed])
    found: dict[Equation, None] = {}
    while len(found) < n:
        equation = _drawn(rng)
        if equation.is_held_out:
            found[equation] = None
    return list(found)


def _equations(n: int, seed: int) -> list[Question]:
    return [
        Question("-".join(map(str, e)), "".join(e.prompt), str(e.x))
        for e in held_out_equations(n, seed)
    ]


# --- all of them --------------------------------------------------------------------------

TASKS: Mapping[str, Task] = {t.name: t for t in (Multiplication(), Search(), Direct())}


def task_named(name: str) -> Task:
    """Return a task. Raises ConfigError for an unknown name."""
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigError(f"there is no task {name!r:.60}; known are {', '.join(TASKS)}") from None
