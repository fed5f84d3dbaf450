"""ProcBench problems to learn from: the question alone, character by character.

A specialist learns one task with few steps and is then asked for many (`capax train procbench`).
Questions whose hash says so are held out: no text to learn from holds them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from capax.errors import ConfigError
from capax.measuring.procbench import generate
from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.evaluate import question_prompt, reference
from capax.measuring.procbench.generators.drawn import Drawn
from capax.measuring.procbench.generators.generate import GENERATORS
from capax.measuring.procbench.instructions import INSTRUCTIONS
from capax.measuring.procbench.problem import DIGITS, LETTERS, TASKS, Problem

if TYPE_CHECKING:
    from capax.training.records import Record

HELD_OUT = 8  # one question in so many is held out
LEARNT_STEPS = range(2, 9)
_PUNCTUATION = ' \n:,()[]_{}"SINA'  # what questions and answers have besides letters and digits


def is_held_out(question: str) -> bool:
    """Say whether a question must not be learnt from, by a hash of its text."""
    return zlib.crc32(question.encode()) % HELD_OUT == 0


@dataclass(frozen=True)
class Specialty:
    """One ProcBench task as records of 2 to 8 steps."""

    task: str
    context_len: int
    tokens: Sequence[str] = tuple(sorted(set(LETTERS + DIGITS + _PUNCTUATION)))
    merges: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        return self.task.lower()

    def record(self, rng: np.random.Generator) -> Record:
        """Return a problem that is not held out, as many of each number of steps."""
        from capax.training.records import END, Record

        steps = int(rng.integers(LEARNT_STEPS.start, LEARNT_STEPS.stop))
        draws = Draws(f"procbench/learnt/{rng.integers(2**62)}")
        while True:
            drawn = GENERATORS[self.task](draws, steps)
            if len(drawn.states) == steps and not is_held_out(drawn.question):
                problem = _problem(self.task, drawn)
                return Record(question_prompt(problem), (*reference(problem), END))


def _problem(task: str, drawn: Drawn) -> Problem:
    return Problem(
        TASKS[task], "", INSTRUCTIONS[task], drawn.question, drawn.init, tuple(drawn.states)
    )


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
    "Rhythm": Specialty("Rhythm", 1024),
    "PushPop": Specialty("PushPop", 2048),
}


def specialty_named(name: str) -> Specialty:
    """Return a task that can be learnt. Raises ConfigError for another."""
    try:
        return SPECIALTIES[name]
    except KeyError:
        known = ", ".join(SPECIALTIES)
        raise ConfigError(f"no specialist learns {name!r:.60}; known are {known}") from None
