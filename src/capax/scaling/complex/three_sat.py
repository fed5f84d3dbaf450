"""3SAT-Search: find an assignment that satisfies all clauses, or say that there is none.

A clause has 3 different variables, each negated with probability 1/2, drawn with replacement, so
a uniform assignment satisfies m clauses with probability (7/8)^m in the mean. Four cells per number
of variables n: m/n = 4.26, 2.13, 8.52, and 4.26 with exactly one solution. Truth: all assignments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.instance import Instance, last_tag

CELLS = (("hard", 4.26), ("under", 2.13), ("over", 8.52), ("unique", 4.26))
MAX_VARIABLES = 20
NONE = "unsatisfiable"
_WORDS = re.compile(r"\b(true|false)\b", re.IGNORECASE)
_PROMPT = """\
Find values for the variables {names} that make every clause true. A clause is true if at least \
one of its three parts is. If no values do, the answer is Unsatisfiable.

{clauses}

Think step by step. Then give the values of all variables in order, exactly in this form:
<final_answer>{{'Solution': 'True, False, ...'}}</final_answer>
or <final_answer>{{'Solution': 'Unsatisfiable'}}</final_answer>"""


def draw_clauses(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """Return m clauses, int64 [m, 3]: variable numbers from 1, negative where negated."""
    variables = rng.random((m, n)).argsort(axis=1)[:, :3] + 1
    return np.asarray(variables * rng.choice([-1, 1], size=(m, 3)))


def solutions(clauses: np.ndarray, n: int) -> np.ndarray:
    """Return the satisfying assignments as numbers, bit i - 1 being variable i."""
    numbers = np.arange(1 << n)
    shifts, wanted = np.abs(clauses) - 1, clauses > 0
    for shift, want in zip(shifts, wanted, strict=True):
        bits = (numbers[:, None] >> shift & 1).astype(bool)
        numbers = numbers[(bits == want).any(axis=1)]
        if not numbers.size:
            break
    return numbers


def spelled(number: int, n: int) -> str:
    """Return an assignment as letters T and F."""
    return "".join("T" if number >> i & 1 else "F" for i in range(n))


def canonical_clauses(clauses: np.ndarray) -> list[tuple[int, ...]]:
    """Return the set of clauses, sorted, each sorted: what makes a formula this one."""
    return sorted({tuple(sorted(int(v) for v in clause)) for clause in clauses})


def n_clauses(n: int, ratio: float) -> int:
    """Return how many clauses a formula of n variables has; ours: rounded."""
    return round(ratio * n)


class ThreeSat:
    """See the module. Level: variables."""

    name = "3sat"
    default_counts: Mapping[int, int] = dict.fromkeys(range(4, 16), 80)
    share = 1

    def make(self, rng: np.random.Generator, level: int, number: int) -> Instance | None:
        """Make a formula of `level` variables; the cell is `number` modulo 4."""
        if not 3 <= level <= MAX_VARIABLES:
            raise ConfigError(f"3sat has levels 3 to {MAX_VARIABLES} (variables), not {level}")
        cell, ratio = CELLS[number % len(CELLS)]
        clauses = draw_clauses(rng, level, n_clauses(level, ratio))
        found = solutions(clauses, level)
        if cell == "unique" and found.size != 1:
            return None
        names = ", ".join(f"x{i + 1}" for i in range(level))
        lines = (" OR ".join(_literal(int(v)) for v in clause) for clause in clauses)
        text = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
        return Instance(
            self.name,
            level,
            cell,
            _PROMPT.format(names=names, clauses=text),
            canonical_clauses(clauses),
            {
                "n": level,
                "clauses": clauses.tolist(),
                "solutions": [spelled(int(a), level) for a in found],
            },
            found.size / (1 << level),
        )

    def extract(self, text: str) -> str | None:
        """Return letters T and F, or "unsatisfiable"."""
        tag = last_tag(text)
        if tag is None:
            return None
        if NONE in tag.lower():
            return NONE
        return "".join(word[0].upper() for word in _WORDS.findall(tag)) or None

    def is_right(self, truth: Mapping[str, Any], answer: str) -> bool:
        """Evaluate the clauses; nothing is right about an unsatisfiable formula but saying so."""
        if answer == NONE:
            return not truth["solutions"]
        return len(answer) == truth["n"] and _unsatisfied(truth, answer) is None

    def solve(self, instance: Instance) -> str:
        """Write the first solution."""
        return render(next(iter(instance.truth["solutions"]), NONE))

    def guess(self, instance: Instance, rng: np.random.Generator) -> str:
        """Write a uniform assignment."""
        return render(spelled(int(rng.integers(1 << instance.level)), instance.level))

    def hint(self, instance: Instance, answer: str | None) -> str:
        """Name a clause that is not satisfied."""
        if answer is None:
            return "No answer in the asked form was found."
        if answer == NONE:
            return "The formula can be satisfied."
        if len(answer) != instance.level:
            return f"There are {instance.level} variables, but {len(answer)} values were given."
        return f"Clause {_unsatisfied(instance.truth, answer)} is not satisfied."


def _literal(value: int) -> str:
    return f"x{value}" if value > 0 else f"NOT x{-value}"


def _unsatisfied(truth: Mapping[str, Any], answer: str) -> int | None:
    """Return the number of the first clause that is false, from 1."""
    for number, clause in enumerate(truth["clauses"], 1):
        if not any((answer[abs(v) - 1] == "T") == (v > 0) for v in clause):
            return number
    return None


def render(answer: str) -> str:
    """Return the text of an extracted answer, in the asked form."""
    words = ", ".join("True" if letter == "T" else "False" for letter in answer)
    words = "Unsatisfiable" if answer == NONE else words
    return f"<final_answer>{{'Solution': '{words}'}}</final_answer>"
