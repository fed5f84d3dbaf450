"""Held-out questions beside a model of `capax train arithmetic`, for `capax scale sample`."""

from __future__ import annotations

import json
from pathlib import Path

from capax.training.arithmetic import Task


def write_questions(task: Task, path: Path, n: int, seed: int = 0) -> None:
    """Write `n` held-out questions as a tasks file."""
    checker = "numeric" if task.name == "search" else "exact"  # a trace ends with its answer
    rows = [{**q._asdict(), "checker": checker} for q in task.questions(n, seed)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
