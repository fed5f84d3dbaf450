"""`capax train players`: a first course of records, and a shorter second one for some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from capax.training.llama import Llama
from capax.training.record_run import RecordRecipe, train_on_records
from capax.training.records import RecordTask

SECOND_SHARE = 0.2  # of the steps of the first course
SECOND_LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PlayerRecipe(RecordRecipe):
    """The second course; `first_steps`: those of the first one."""

    first_steps: int

    @property
    def n_tokens(self) -> int:
        return (self.first_steps + self.steps) * self.tokens


def train_player(
    first: RecordTask,
    second: RecordTask | None,
    recipe: RecordRecipe,
    folder: Path,
    *,
    threads: int = 1,
    on_report: Callable[[Mapping[str, float]], None] | None = None,
) -> tuple[Llama, RecordRecipe]:
    """Train on `first`, then on `second` in a folder inside; goes on from what is there.

    Returns the model and the recipe of its last course, which knows the first.
    """
    model = train_on_records(first, recipe, folder, threads=threads, on_report=on_report)
    if second is None:
        return model, recipe
    steps = max(1, round(SECOND_SHARE * recipe.steps))
    shorter = replace(recipe, steps=steps, learning_rate=SECOND_LEARNING_RATE)
    last = PlayerRecipe(**asdict(shorter), first_steps=recipe.steps)
    model = train_on_records(
        second, last, folder / "second", threads=threads, on_report=on_report, begin=model
    )
    return model, last
