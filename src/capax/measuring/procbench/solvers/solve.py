"""Solve a question by its task's procedure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from capax.measuring.procbench.problem import State
from capax.measuring.procbench.solvers import appending, counting, editing, splitting

SOLVERS: Mapping[str, Callable[[str], list[State]]] = {
    "Sort": editing.sort,
    "Gather": appending.gather,
    "Count": counting.count,
    "Search": counting.search,
    "Copy": appending.copy,
    "Substitute": editing.substitute,
    "Encode": appending.encode,
    "Split1": splitting.split1,
    "Split2": splitting.split2,
    "Compose": splitting.compose,
    "Decompose": splitting.decompose,
    "Rhythm": appending.rhythm,
    "Compare": appending.compare,
    "Count2": counting.count2,
    "Decode": appending.decode,
    "PushPop": editing.push_pop,
    "Rotate": editing.rotate,
    "FillWord": editing.fill_word,
    "DeleteChar": editing.delete_char,
    "DeleteWord": editing.delete_word,
    "Cumulate": counting.cumulate,
    "MoveCyclic": editing.move_cyclic,
    "FindCyclic": counting.find_cyclic,
}


def solve(task: str, question: str) -> list[State]:
    """Return the state after each step, the final one last.

    Raises ConfigError if the question does not have the form of its task.
    """
    return SOLVERS[task](question)
