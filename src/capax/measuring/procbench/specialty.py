"""ProcBench problems to learn from: the question alone, character by character.

A specialist learns one task with few steps and is then asked for many (`capax train procbench`).
Questions whose hash says so are held out: no text to learn from holds them. Nor does any hold a
question of the public generators' 1,656 examples, known here by their digests alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from capax.errors import ConfigError
from capax.measuring.procbench import generate
from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.evaluate import question_prompt, reference
from capax.measuring.procbench.generators.generate import GENERATORS, problem_of
from capax.measuring.procbench.problem import DIGITS, LETTERS, Problem

if TYPE_CHECKING:
    from capax.training.records import Record

HELD_OUT = 8  # one question in so many is held out
_PUNCTUATION = ' \n:,()[]_{}"SINA'  # what questions and answers have besides letters and digits


def is_held_out(question: str) -> bool:
    """Say whether a question is kept to be asked, by a hash of its text."""
    return zlib.crc32(question.encode()) % HELD_OUT == 0


def is_public(problem: Problem) -> bool:
    """Say whether a question is one of the public examples."""
    return problem.digest[:16] in _public_questions()


@cache
def _public_questions() -> frozenset[str]:
    """Return the first 16 digits of the digest of each public example."""
    return frozenset(files(__package__).joinpath("public_questions.txt").read_text().split())


@dataclass(frozen=True)
class Specialty:
    """One ProcBench task as records of few steps."""

    task: str
    learnt_steps: range
    context_len: int
    tokens: Sequence[str] = tuple(sorted(set(LETTERS + DIGITS + _PUNCTUATION)))
    merges: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        return self.task.lower()

    def record(self, rng: np.random.Generator) -> Record:
        """Return a problem neither held out nor public, as many of each number of steps."""
        from capax.training.records import END, Record

        steps = int(rng.integers(self.learnt_steps.start, self.learnt_steps.stop))
        draws = Draws(f"procbench/learnt/{rng.integers(2**62)}")
        while True:
            drawn = GENERATORS[self.task](draws, steps)
            if len(drawn.states) != steps or is_held_out(drawn.question):
                continue
            problem = problem_of(self.task, drawn)
            if not is_public(problem):
                return Record(question_prompt(problem), (*reference(problem), END))


def held_out_problems(task: str, steps: Sequence[int], per_cell: int, seed: int) -> list[Problem]:
    """Return `per_cell` different problems of each number of steps that nothing is learnt from."""
    found = []
    for n_steps in steps:
        amount = 2 * HELD_OUT * per_cell
        cell: list[Problem] = []
        while len(cell) < per_cell:  # drawing more keeps those drawn before
            drawn = generate([task], [n_steps], amount, seed)
            cell = [p for p in drawn if is_held_out(p.question)]
            amount *= 2
        found += cell[:per_cell]
    return found


SPECIALTIES: Mapping[str, Specialty] = {
    "Rhythm": Specialty("Rhythm", range(2, 9), 1024),
    "PushPop": Specialty("PushPop", range(2, 7), 2048),
}


def specialty_named(name: str) -> Specialty:
    """Return a task that can be learnt. Raises ConfigError for another."""
    try:
        return SPECIALTIES[name]
    except KeyError:
        known = ", ".join(SPECIALTIES)
        raise ConfigError(f"no specialist learns {name!r:.60}; known are {known}") from None
