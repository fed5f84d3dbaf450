"""Formulas for tiny models: clauses as tokens, and texts that answer with an assignment.

    e:aBd,bCe,...,!bCe,:      variables a to e, clauses, negations in capitals, a clause to mend

`SatDirect` answers at once, `SatSearch` after a search with backtracking: decided literals have a
question mark, those that a clause forces have none, "!" says that a clause is false, and after "/"
the literals before the last decision come again, and that decision turned round:

    ?aBc!/Ab?dE<final_answer>{'Solution': 'False, True, ...'}</final_answer>

The chat template of the model file makes that prompt out of the generated one and of the hints that
`OracleCritic` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from capax.scaling.complex.players.held_out import is_held_out, key_of
from capax.scaling.complex.three_sat import (
    CELLS,
    ThreeSat,
    canonical_clauses,
    draw_clauses,
    n_clauses,
    solutions,
)

if TYPE_CHECKING:
    from capax.training.records import Record

LEARNT_VARIABLES = {4: 0.2, 5: 0.2, 6: 0.25, 7: 0.2, 8: 0.15}  # share of the records
HINTED = 0.3  # share of records with hints
MOST_HINTS = 4
_LETTERS = "abcdefghijkl"
_OPEN, _CLOSE = "<final_answer>{'Solution': '", "'}</final_answer>"

TEMPLATE = """\
{%- set low = 'abcdefghijkl' -%}
{%- macro clause(line) -%}
{%- for part in line.split('. ')[1].split(' OR ') -%}
{%- if 'NOT ' in part -%}
{{ low[part[5:] | int - 1] | upper }}
{%- else -%}
{{ low[part[1:] | int - 1] }}
{%- endif -%}
{%- endfor -%}
,
{%- endmacro -%}
{%- set kept = namespace(lines=[]) -%}
{%- for m in messages if m.role == 'user' -%}
{%- if 'that make every clause true.' in m.content -%}
{{ low[m.content.split(' that make')[0].split(', ') | length - 1] + ':' }}
{%- set kept.lines = m.content.split('\\n\\n')[1].split('\\n') -%}
{%- for line in kept.lines -%}{{ clause(line) }}{%- endfor -%}
{%- elif loop.first -%}
{{ raise_exception('this model reads tasks of capax scale tasks generate 3sat only') }}
{%- elif ' is not satisfied.' in m.content -%}
{{ '!' + clause(kept.lines[m.content.split('Clause ')[1].split(' ')[0] | int - 1]) }}
{%- elif 'The formula can be satisfied.' in m.content -%}
{{ '!,' }}
{%- endif -%}
{%- endfor -%}
:"""
_TOKENS = (
    *":,!?/", *_LETTERS, *_LETTERS.upper(), "True", "False", ", True", ", False", "Unsatisfiable",
    _OPEN, _CLOSE,
)  # fmt: skip


def letter(literal: int) -> str:
    """Return the token of a literal: a small letter, a capital if it is negated."""
    name = _LETTERS[abs(literal) - 1]
    return name if literal > 0 else name.upper()


def prompt_of(n: int, clauses: np.ndarray, hints: Sequence[Sequence[int]]) -> list[str]:
    """Return the tokens of a formula and of hints: a clause to mend, or none if it is solvable."""
    tokens = [_LETTERS[n - 1], ":"]
    for clause in clauses:
        tokens += [*(letter(int(v)) for v in clause), ","]
    for hint in hints:
        tokens += ["!", *(letter(int(v)) for v in hint), ","]
    return [*tokens, ":"]


def _answer(values: Sequence[bool] | None) -> list[str]:
    if values is None:
        return [_OPEN, "Unsatisfiable", _CLOSE]
    words = [f"{', ' if i else ''}{value}" for i, value in enumerate(values)]
    return [_OPEN, *words, _CLOSE]


class _Search:
    """A search with unit propagation; `trail`: literals and whether each was decided."""

    def __init__(self, n: int, clauses: np.ndarray, rng: np.random.Generator) -> None:
        self._n, self._rng = n, rng
        self._clauses = [tuple(int(v) for v in clause) for clause in clauses]
        self.trail: list[tuple[int, bool]] = []
        self.tokens: list[str] = []

    def run(self, first: int | None) -> list[bool] | None:
        """Return values of all variables, or None; `first`: the literal to decide first."""
        while True:
            true = {literal for literal, _ in self.trail}
            open_ = [c for c in self._clauses if not true.intersection(c)]
            rest = [[v for v in clause if -v not in true] for clause in open_]
            if not all(rest):
                self.tokens.append("!")
                if not self._turn_back():
                    return None
            elif len(true) == self._n:
                return [i in true for i in range(1, self._n + 1)]
            elif units := sorted({clause[0] for clause in rest if len(clause) == 1}):
                self._push(units[int(self._rng.integers(len(units)))], decided=False)
            else:
                self._push(first if first is not None else self._choice(true, rest), decided=True)
                first = None

    def _push(self, literal: int, *, decided: bool) -> None:
        self.trail.append((literal, decided))
        self.tokens += ["?", letter(literal)] if decided else [letter(literal)]

    def _turn_back(self) -> bool:
        while self.trail and not self.trail[-1][1]:
            self.trail.pop()
        if not self.trail:
            return False
        literal, _ = self.trail.pop()
        again, self.trail = self.trail, []
        self.tokens.append("/")
        for known, decided in again:
            self._push(known, decided=decided)
        self._push(-literal, decided=False)
        return True

    def _choice(self, true: set[int], rest: list[list[int]]) -> int:
        """Return any free variable, as most of the open clauses want it."""
        free = [v for v in range(1, self._n + 1) if v not in true and -v not in true]
        variable = free[int(self._rng.integers(len(free)))]
        wanted = sum((variable in clause) - (-variable in clause) for clause in rest)
        if wanted == 0:
            wanted = 1 if self._rng.random() < 0.5 else -1
        return variable if wanted > 0 else -variable


def search(
    n: int, clauses: np.ndarray, rng: np.random.Generator, first: int | None = None
) -> tuple[list[str], list[bool] | None]:
    """Return the tokens of a search, and the values it ends with (None: there are none)."""
    searched = _Search(n, clauses, rng)
    values = searched.run(first)
    return searched.tokens, values


class _Question:
    """A formula to learn from; `hints`: what a critic said to wrong answers before."""

    def __init__(self, rng: np.random.Generator) -> None:
        while True:
            self.n = int(rng.choice(list(LEARNT_VARIABLES), p=list(LEARNT_VARIABLES.values())))
            cell, ratio = CELLS[int(rng.integers(len(CELLS)))]
            self.clauses = draw_clauses(rng, self.n, n_clauses(self.n, ratio))
            self.found = solutions(self.clauses, self.n)
            if cell == "unique" and self.found.size != 1:
                continue
            if not is_held_out(key_of(ThreeSat.name, canonical_clauses(self.clauses))):
                break
        self.hints: list[list[int]] = []
        self.first: int | None = None
        if self.found.size and rng.random() < HINTED:
            self._hint(rng)

    @property
    def prompt(self) -> list[str]:
        return prompt_of(self.n, self.clauses, self.hints)

    def solution(self, rng: np.random.Generator) -> list[bool]:
        number = int(rng.choice(self.found))
        return [bool(number >> i & 1) for i in range(self.n)]

    def _hint(self, rng: np.random.Generator) -> None:
        """Name first false clauses of wrong answers; the last one is where to decide first."""
        for _ in range(int(rng.integers(1, MOST_HINTS + 1))):
            values = self.solution(rng)
            for flipped in rng.choice(self.n, int(rng.integers(1, 3)), replace=False):
                values[flipped] = not values[flipped]
            false = [c for c in self.clauses if not any(values[abs(v) - 1] == (v > 0) for v in c)]
            self.hints.append([int(v) for v in false[0]] if false else [])
        if self.hints[-1]:
            self.first = int(rng.choice(self.hints[-1]))


@dataclass(frozen=True)
class _Solver:
    """What both players share."""

    name: str
    tokens: Sequence[str] = _TOKENS
    merges: Sequence[tuple[str, str]] = ()
    context_len: int = 768
    chat_template: str = TEMPLATE


class SatDirect(_Solver):
    """Assignments at once."""

    def record(self, rng: np.random.Generator) -> Record:
        """Return a formula that is not held out, with or without hints, and a solution."""
        from capax.training.records import END, Record

        question = _Question(rng)
        values = question.solution(rng) if question.found.size else None
        return Record(question.prompt, [*_answer(values), END])


class SatSearch(_Solver):
    """Assignments found by search."""

    def record(self, rng: np.random.Generator) -> Record:
        """Return a formula that is not held out, a search, and what it found."""
        from capax.training.records import END, Record

        question = _Question(rng)
        trace, values = search(question.n, question.clauses, rng, question.first)
        return Record(question.prompt, [*trace, *_answer(values), END])
