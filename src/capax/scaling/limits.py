"""What resampling until a check passes can reach, from a run that two checks have judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.scaling.checkers import checker_named
from capax.scaling.imperfect_verifiers import (
    Ceiling,
    Estimate,
    Types,
    VerifierModel,
    ceiling,
    plan,
)
from capax.scaling.run_directory import Sample, read_rows
from capax.scaling.tasks import Task

ATTEMPTS = (1, 2, 4, 8, 16, 32, 64)


def judged_twice(path: Path, tasks: Sequence[Task], weak: str, strong: str) -> VerifierModel:
    """Judge the stored samples of a run by two checkers; nothing is sampled and nothing is kept.

    Of every task as many samples count as the task with the fewest has. Raises ConfigError for a
    checker that cannot read a reference, and for a run without samples of the tasks.
    """
    checkers = [checker_named(name) for name in (weak, strong)]
    for checker in checkers:
        for task in tasks:
            checker.check_reference(task.reference)
        if checker.prepare is not None:
            checker.prepare()
    place = {task.id: i for i, task in enumerate(tasks)}
    found: list[dict[int, tuple[bool, ...]]] = [{} for _ in tasks]
    known: dict[tuple[int, str], tuple[bool, ...]] = {}
    for row in read_rows(path, Sample):
        if row.problem_id not in place:
            continue
        i = place[row.problem_id]
        if (i, row.text) not in known:
            known[i, row.text] = tuple(c.check(row.text, tasks[i].reference) for c in checkers)
        found[i][row.sample_idx] = known[i, row.text]
    found = [verdicts for verdicts in found if verdicts]
    if not found:
        raise ConfigError(f"{path} has samples of none of these {len(tasks)} tasks")
    n = min(map(len, found))
    table = np.array([[verdicts[i] for i in sorted(verdicts)[:n]] for verdicts in found])
    return VerifierModel(table[..., 0], table[..., 1])


def kinds_of(model: VerifierModel) -> Types:
    """Return every task as a kind of its own, with the rates of its samples."""
    pools = model.pools()
    right, wrong = pools.attempts.right, pools.attempts.wrong
    sound = np.where(right < 1, 1 - wrong / np.where(right < 1, 1 - right, 1), 1.0).clip(0, 1)
    return Types(np.full(right.size, 1 / right.size), right, sound)


def _plain(counted: Estimate | Ceiling) -> dict[str, float | int | None]:
    """Return the fields, None where there is no number."""
    return {k: None if math.isnan(v) else v for k, v in counted._asdict().items()}


def limits(model: VerifierModel, ratios: Sequence[float]) -> dict[str, Any]:
    """Return soundness, ceiling, how late acceptances err, and the best attempts per ratio.

    `ratios`: what a wrong answer costs, where a right one earns 1. Where the weak check rejects
    right answers too, a task's chance of success is that of a right and accepted one.
    """
    pools = model.pools()
    n = int(pools.n[0])
    top = ceiling(pools.attempts)
    kinds = kinds_of(model)
    return {
        "n_tasks": len(kinds.shares),
        "n_samples": n,
        "accuracy": float(model.strong.mean()),
        "soundness": _plain(model.soundness()),
        "completeness": _plain(model.completeness()),
        "ceiling": _plain(top),
        "false_positive_rate": {
            str(k): pools.false_positive_rate(k)
            for k in ATTEMPTS
            if k <= n and float((pools.right + pools.wrong).sum())
        },
        "plans": [
            {
                "ratio": ratio,
                "attempts": best.attempts,
                "reward": best.reward,
                "attempts_for_99_percent": best.attempts_99,
            }
            for ratio in ratios
            for best in (plan(kinds, ratio),)
        ],
    }
