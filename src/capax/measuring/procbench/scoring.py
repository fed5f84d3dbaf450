"""How far an answer is right: prefix match length, prefix accuracy, sequential and final match.

True states T = (t_1..t_s), predicted P = (p_1..p_q), both with the final state last:

    PML = number of leading positions with p_i = t_i        PA = PML / max(s, q)
    SM  = 1 if PA = 1, else 0                               FM = 1 if p_q = t_s, else 0

`strict` equality, the default, goes by type: a list equals a list only, an integer an integer or
its decimal digits. `published` equality is that of the authors' evaluator, kept for comparison
with their tables: it also takes "abc" for ["a", "b", "c"] and 7.9 for 7, never matches an empty
list, and scores an answer that could not be read as no states and the final state "".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from capax.measuring.procbench.problem import Kind, Problem, Task

Equality = Literal["strict", "published"]
INTEGER: Final = re.compile(r"-?[0-9]{1,1000}")  # parsed exactly, and bounded


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer as read: states of JSON's types. `final` None: it was not given."""

    intermediate: Sequence[Any]
    final: Any = None

    @property
    def states(self) -> list[Any]:
        return [*self.intermediate, self.final]


@dataclass(frozen=True, slots=True)
class Score:
    """One answer against its truth. `n_states`: q, the states predicted, the final included."""

    pml: int
    n_states: int
    pa: float
    sm: bool
    fm: bool


def score(prediction: Prediction | None, problem: Problem, equality: Equality = "strict") -> Score:
    """Score an answer; None, one that could not be read, scores 0 throughout if strict."""
    if prediction is None and equality == "published":
        prediction = Prediction([], "")
    return score_states(
        [] if prediction is None else prediction.states, problem.states, problem.task, equality
    )


def score_states(
    predicted: Sequence[Any], truth: Sequence[Any], task: Task, equality: Equality = "strict"
) -> Score:
    """Score predicted states, the final one last, against the true ones (at least one)."""
    kinds = [task.kind] * (len(truth) - 1) + [task.final_kind]
    same = equal if equality == "strict" else published_equal
    pml = 0
    for p, t, kind in zip(predicted, truth, kinds, strict=False):
        if not same(p, t, kind):
            break
        pml += 1
    longest = max(len(truth), len(predicted))
    is_final = bool(predicted) and same(predicted[-1], truth[-1], task.final_kind)
    return Score(pml, len(predicted), pml / longest, pml == longest, is_final)


def equal(predicted: Any, truth: Any, kind: Kind) -> bool:
    """Whether a predicted state is the true one, by the type of the true one."""
    if kind == "str":
        return isinstance(predicted, str) and bool(predicted == truth)
    if kind == "int":
        return bool(as_integer(predicted) == truth)
    if not isinstance(predicted, list) or len(predicted) != len(truth):
        return False
    if kind == "ints":
        return all(as_integer(p) == t for p, t in zip(predicted, truth, strict=True))
    return all(_as_string(p) == t for p, t in zip(predicted, truth, strict=True))


def as_integer(value: Any) -> int | None:
    """Return an integer, or the integer that a string of digits is; None for anything else."""
    if isinstance(value, str):
        return int(value) if INTEGER.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_string(value: Any) -> str | None:
    """Return an item of a list as the string it is compared as."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def published_equal(predicted: Any, truth: Any, kind: Kind) -> bool:
    """Whether the authors' evaluator takes a predicted state for the true one."""
    if kind == "str":
        return bool(str(predicted) == truth)
    if kind == "int":
        try:
            return bool(int(predicted) == truth)
        except (TypeError, ValueError, OverflowError):
            return False
    if not truth or not isinstance(predicted, str | list) or len(predicted) != len(truth):
        return False
    return all(str(p) == str(t) for p, t in zip(predicted, truth, strict=True))
