"""Problems of wanted step counts: draw until the count fits and the question is new.

The same seed gives the same problems, whichever tasks, steps and amounts are asked for with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from capax.errors import ConfigError
from capax.measuring.procbench.draws import Draws
from capax.measuring.procbench.generators import appending, counting, editing, splitting
from capax.measuring.procbench.generators.drawn import Drawn, Generator
from capax.measuring.procbench.instructions import INSTRUCTIONS
from capax.measuring.procbench.problem import MAX_STEPS, MIN_STEPS, TASKS, Problem

DEFAULT_SEED = 12
MAX_DRAWS = 100_000  # of one cell; the slowest of them takes a few hundred per problem

GENERATORS: Mapping[str, Generator] = {
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


def generate(
    tasks: Iterable[str] = tuple(TASKS),
    steps: Iterable[int] = range(MIN_STEPS, MAX_STEPS + 1),
    per_cell: int = 10,
    seed: int = DEFAULT_SEED,
) -> Iterator[Problem]:
    """Yield `per_cell` different problems for each task and number of steps.

    Raises ConfigError for an unknown task, for steps outside 2 to 25, and for more problems than
    a cell has.
    """
    wanted = list(steps)
    for name in tasks:
        if name not in TASKS:
            raise ConfigError(f"there is no task {name!r:.40}; there are {', '.join(TASKS)}")
        for n_steps in wanted:
            if not MIN_STEPS <= n_steps <= MAX_STEPS:
                raise ConfigError(
                    f"steps is {n_steps} but problems have {MIN_STEPS} to {MAX_STEPS} steps"
                )
            yield from _cell(name, n_steps, per_cell, seed)


def problem_of(task: str, drawn: Drawn, example: str = "") -> Problem:
    """Return a draw as a problem, with our own instructions."""
    return Problem(
        TASKS[task], example, INSTRUCTIONS[task], drawn.question, drawn.init, tuple(drawn.states)
    )


def _cell(name: str, n_steps: int, amount: int, seed: int) -> Iterator[Problem]:
    draws = Draws(f"procbench/{seed}/{name}/{n_steps}")
    seen: set[str] = set()
    for _ in range(MAX_DRAWS):
        if len(seen) == amount:
            return
        drawn = GENERATORS[name](draws, n_steps)
        if len(drawn.states) != n_steps or drawn.question in seen:
            continue
        example = f"{n_steps:02d}-{len(seen):04d}"
        seen.add(drawn.question)
        yield problem_of(name, drawn, example)
    if len(seen) < amount:
        raise ConfigError(
            f"{name} with {n_steps} steps gave {len(seen)} different problems in {MAX_DRAWS:,} "
            f"draws but {amount} are wanted; ask for fewer"
        )
