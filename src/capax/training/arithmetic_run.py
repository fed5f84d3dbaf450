"""`capax train arithmetic`: a tiny model that multiplies or solves equations, as GGUF.

Beside the run its folder gets held-out questions for `capax scale sample`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from capax.training.arithmetic import Task, task_named
from capax.training.record_run import RecordRecipe


@dataclass(frozen=True, kw_only=True)
class ArithmeticRecipe(RecordRecipe):
    """What is trained on what. `task`: multiplication, direct or search."""

    task: str = "multiplication"

    def learnt(self) -> Task:
        return task_named(self.task)


def write_questions(recipe: ArithmeticRecipe, path: Path, n: int, seed: int = 0) -> None:
    """Write `n` held-out questions as a tasks file."""
    questions = recipe.learnt().questions(n, seed)
    checker = "numeric" if recipe.task == "search" else "exact"  # a trace ends with its answer
    lines = [json.dumps({**q._asdict(), "checker": checker}) + "\n" for q in questions]
    path.write_text("".join(lines))
