"""bench-S: short problems of many small skills, some frequent and most rare, to learn from scratch.

    tBC f>h a>u d>c ;   table BC: each letter has its image
    mAQ c>3 d>1 a>0 ;   machine AQ: the state after each letter, from 0 on
    sF 4>4 1>5 8>6 ;    sums modulo F (here 7): the running sum after each digit

(Spaces and > are for the reader only.) A problem is asked turn by turn: what stands before > is
read, what stands behind it is answered. A family's skills have Zipf frequencies, so that what is
left to learn falls smoothly instead of in jumps; because the answer follows what it is about, no
skill waits for a circuit that first has to find it. There is one right answer to each turn, so
"every most likely token is right" is the same as a greedy exact match of all turns and needs no
generation. Problems are endless. One in `HELD_OUT` never stands in a training text, whatever the
seed: which ones is a property of the problem's own text.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NAMES = "ABCDEFGHIJKLMNOPQRST"
LETTERS = "abcdefgh"
DIGITS = "0123456789"
TOKENS = (*NAMES, *LETTERS, *DIGITS, *"tms", ";")  # 42; the last one ends a problem
ID = {token: i for i, token in enumerate(TOKENS)}
END = ID[";"]
HELD_OUT = 16  # one problem of so many is never learnt
TABLES, MACHINES, MODULI = 400, 400, 9
HALF_A_TEXT = 6  # tokens
WORLD = 20  # seed of the tables and machines themselves: all models learn the same ones


class Problem(NamedTuple):
    """What is asked, token by token, and the one right answer to each, without the end.

    `opening` is read first: the family's letter and the skill's name. Junk asks nothing.
    """

    family: str
    opening: str
    asked: str
    answer: str

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32((self.opening + self.asked).encode()) % HELD_OUT == 0


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How often what is asked.

    `families`: shares of t, m, s; `zipf`: exponent of the skills' frequencies. Of training only:
    `junk`, the share of texts that are random letters, and `noise`, the share of answers with one
    wrong token.
    """

    families: tuple[float, float, float] = (0.5, 0.3, 0.2)
    zipf: float = 1.0
    junk: float = 0.15
    noise: float = 0.0


class BenchS:
    """Problems of a mix, as text or as blocks of tokens."""

    def __init__(self, mix: Mix | None = None) -> None:
        self.mix = mix or Mix()
        world = random.Random(WORLD)
        self._tables = [world.sample(LETTERS, 8) for _ in range(TABLES)]
        self._machines = [[world.choices(range(8), k=4) for _ in range(8)] for _ in range(MACHINES)]
        self._family = list(accumulate(self.mix.families))
        self._rank = {
            n: list(accumulate(rank**-self.mix.zipf for rank in range(1, n + 1)))
            for n in (TABLES, MACHINES, MODULI)
        }

    def problem(self, rng: random.Random) -> Problem:
        """Return any problem, one that is held out too."""
        family = "tms"[bisect(self._family, rng.random() * self._family[-1], hi=2)]
        state, answer = 0, ""
        if family == "s":
            skill = self._skill(rng, MODULI)
            name = NAMES[skill]
            asked = "".join(
                DIGITS[int(rng.random() * 10)] for _ in range(3 + int(rng.random() * 3))
            )
            for digit in asked:
                state = (state + int(digit)) % (skill + 2)
                answer += DIGITS[state]
            return Problem(family, family + name, asked, answer)
        if family == "t":
            skill = self._skill(rng, TABLES)
            asked = self._letters(rng, 3, 8)
            answer = "".join(self._tables[skill][ord(letter) - 97] for letter in asked)
        else:
            skill = self._skill(rng, MACHINES)
            asked = self._letters(rng, 3 + int(rng.random() * 2), 4)
            for letter in asked:
                state = self._machines[skill][state][ord(letter) - 97]
                answer += DIGITS[state]
        name = NAMES[skill // len(NAMES)] + NAMES[skill % len(NAMES)]
        return Problem(family, family + name, asked, answer)

    def learnt(self, rng: random.Random) -> Problem:
        """Return a text to learn from: junk, or a problem whose answer may be spoiled."""
        if self.mix.junk and rng.random() < self.mix.junk:
            return Problem("junk", self._letters(rng, 1, 8), "", self._letters(rng, 10, 8))
        while (problem := self.problem(rng)).is_held_out:
            pass
        if self.mix.noise and rng.random() < self.mix.noise:
            at = rng.randrange(len(problem.answer))
            alphabet = LETTERS if problem.family == "t" else DIGITS
            wrong = rng.choice([c for c in alphabet if c != problem.answer[at]])
            return problem._replace(answer=problem.answer[:at] + wrong + problem.answer[at + 1 :])
        return problem

    def held_out(self, n: int, seed: int) -> list[Problem]:
        """Return `n` problems that no training text has."""
        rng, found = random.Random(seed), list[Problem]()
        while len(found) < n:
            problem = self.problem(rng)
            if problem.is_held_out:
                found.append(problem)
        return found

    def block(self, seed: int, step: int, n_tokens: int) -> npt.NDArray[np.int32]:
        """Return what a step learns from: texts of `n_tokens` tokens, give or take half a text.

        A function of (seed, step). [n, t]; ~id is read, not predicted.
        """
        rng = random.Random((seed << 32) + step)
        problems = []
        while n_tokens > HALF_A_TEXT:
            problem = self.learnt(rng)
            problems.append(problem)
            n_tokens -= len(problem.opening) + len(problem.asked) + len(problem.answer) + 1
        return encode(problems)

    def _skill(self, rng: random.Random, n: int) -> int:
        ranks = self._rank[n]
        return bisect(ranks, rng.random() * ranks[-1], hi=n - 1)

    @staticmethod
    def _letters(rng: random.Random, n: int, of: int) -> str:
        return "".join([LETTERS[int(rng.random() * of)] for _ in range(n)])


def encode(problems: Sequence[Problem]) -> npt.NDArray[np.int32]:
    """Return problems as token ids [n, t]; what is asked, and padding, as ~id: only read."""
    rows = []
    for p in problems:
        row = [~ID[c] for c in p.opening]
        for asked, answer in zip_longest(p.asked, p.answer):
            row += ([~ID[asked]] if asked else []) + [ID[answer]]
        rows.append([*row, END])
    block = np.full((len(rows), max(map(len, rows))), ~END, np.int32)
    for out, row in zip(block, rows, strict=True):
        out[: len(row)] = row
    return block
