"""What one draw of a generator gives, before it is known whether its step count is the wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.problem import State


class Drawn(NamedTuple):
    """A question as text, the state before the first step, and the state after each step."""

    question: str
    init: State
    states: Sequence[State]


Generator = Callable[[Draws, int], Drawn]  # draws towards so many steps; may miss them


def listed(items: Sequence[object]) -> str:
    """Write items with commas between."""
    return ", ".join(map(str, items))
