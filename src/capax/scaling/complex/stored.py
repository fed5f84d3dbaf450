"""Read a run of generated tasks back from its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from capax.errors import ConfigError
from capax.scaling.complex.families import FAMILIES, instance_of
from capax.scaling.complex.study import Played
from capax.scaling.run_directory import Sample, Verdict, read_rows
from capax.scaling.tasks import Task


def played_of_run(path: Path, tasks: Sequence[Task]) -> dict[str, list[Played]]:
    """Return what the run holds of these tasks, by family.

    Tokens are new ones, NaN where the endpoint did not say. Raises ConfigError if the run has
    samples of none of them.
    """
    generated = {task.id: task for task in tasks if task.checker.name in FAMILIES}
    tokens = {
        made.key: made.new_tokens
        for made in read_rows(path, Sample)
        if made.problem_id in generated
    }
    verdicts: dict[str, dict[int, Verdict]] = {}
    for verdict in read_rows(path, Verdict):
        task = generated.get(verdict.problem_id)
        if task is not None and verdict.checker == task.checker.name:
            verdicts.setdefault(task.id, {})[verdict.sample_idx] = verdict
    families: dict[str, list[Played]] = {}
    for name, found in verdicts.items():
        instance = instance_of(generated[name].reference)
        ordered = [found[idx] for idx in sorted(found)]
        counts = [tokens.get((name, v.sample_idx)) for v in ordered]
        families.setdefault(instance.family, []).append(
            Played(
                instance,
                [v.answer for v in ordered],
                np.array([v.correct for v in ordered]),
                np.array([np.nan if n is None else n for n in counts], float),
            )
        )
    if not families:
        raise ConfigError(f"{path} has no checked samples of generated tasks in this file")
    return families
