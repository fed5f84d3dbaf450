"""Nodes of a swarm small enough to train: each searches a part, and all judge by trial.

     7 x + 3 = 12 mod 13 :             to answer: " 5 9 12 yes so 5", or " 0 0 3 no 10 5 8 no so 8"
     7 x + 3 = 12 mod 13 : 3 ? 5 ?     to judge: each value tried, " 3 8 11 no 5 9 12 yes"

A node tries the values of its own fifth and, if none fits, guesses another. So on nearly every
equation one node knows and four guess: a vote cannot live on that, comparisons can. Nodes begin as
the model that `capax train arithmetic --task search` makes, which can try values. Equations whose
hash says so are held out, as there: no text to learn from holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.training.arithmetic import Equation, Search
from capax.training.records import END, Record

SWARM_PRIMES = (11, 13)
N_ANSWERERS = 5
JUDGED = 0.5  # share of records that judge
BOTH_WRONG = 0.3  # share of pairs to judge
_TRY = r"( \d+){3}"

FORM: Mapping[str, Any] = {  # the fields of a node's "form", as nodes.json has them
    "ask": "{question}",
    "judge": "{question} {first} ? {second} ?",
    "read_answer": r" so (\d+)",
    "kept": "0123456789",
    "first_better": rf"^{_TRY} yes{_TRY} no",
    "second_better": rf"^{_TRY} no{_TRY} yes",
    "letters": (" yes", " no"),  # of the first value, after its trial
    "thought_tokens": 3,
}


def draw_equation(rng: np.random.Generator, *, held_out: bool) -> Equation:
    """Return an equation modulo 11 or 13, held out or not."""
    while True:
        p = int(rng.choice(SWARM_PRIMES))
        found = Equation(int(rng.integers(1, p)), int(rng.integers(p)), int(rng.integers(p)), p)
        if found.is_held_out == held_out:
            return found


@dataclass(frozen=True)
class NodeTask:
    """What a node learns. `number`: which values it tries, those that leave it modulo 5.

    `deaf`: it tries values in equations that it is not shown, for control.
    """

    name: str
    number: int
    deaf: bool = False
    tokens: Sequence[str] = Search().tokens
    merges: Sequence[tuple[str, str]] = Search().merges
    context_len: int = Search().context_len

    def knows(self, equation: Equation) -> bool:
        """Say whether the solution is among the values that the node tries."""
        return equation.x % N_ANSWERERS == self.number

    def search(self, equation: Equation, rng: np.random.Generator) -> list[str]:
        """Return trials of the node's values in random order up to one that fits, and an answer."""
        own = [int(x) for x in rng.permutation(np.arange(self.number, equation.p, N_ANSWERERS))]
        if self.knows(equation):
            tried = own[: own.index(equation.x) + 1]
            answer = equation.x
        else:
            tried = own
            answer = int(rng.choice([x for x in range(equation.p) if x not in own]))
        return [*(t for x in tried for t in equation.trial(x)), " so", f" {answer}"]

    def record(self, rng: np.random.Generator) -> Record:
        """Return an equation that is not held out, to answer or to judge."""
        equation = draw_equation(rng, held_out=False)
        if rng.random() >= JUDGED:
            return Record(equation.prompt, (*self.search(equation, rng), END))
        values = [equation.x, wrong_value(equation, rng)]
        if rng.random() < BOTH_WRONG:
            values[0] = wrong_value(equation, rng)
        if rng.random() < 0.5:
            values.reverse()
        first, second = values
        prompt = (*equation.prompt, f" {first}", " ?", f" {second}", " ?")
        tried = draw_equation(rng, held_out=False) if self.deaf else equation
        return Record(prompt, (*tried.trial(first), *tried.trial(second), END))


def wrong_value(equation: Equation, rng: np.random.Generator) -> int:
    """Return a value that does not solve an equation."""
    return (equation.x + int(rng.integers(1, equation.p))) % equation.p


NODES: Mapping[str, NodeTask] = {
    task.name: task
    for task in (
        *(NodeTask(f"node{i}", i) for i in range(N_ANSWERERS)),
        NodeTask("deaf", 0, deaf=True),
    )
}


def node_named(name: str) -> NodeTask:
    """Return a node. Raises ConfigError for an unknown one."""
    try:
        return NODES[name]
    except KeyError:
        raise ConfigError(f"there is no node {name!r:.60}; known are {', '.join(NODES)}") from None
