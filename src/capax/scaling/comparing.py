"""Strategies side by side on the same tasks, each at the token budgets asked for.

"Think Deep, Think Fast" (2025, arXiv 2504.14047) compares what tokens buy, not what samples buy:
the axis is the tokens of all calls, prompts, judges and revisions included. Each strategy and
budget has a run directory of its own, so any stop loses at most the answers under way.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from capax.decoding.params import SamplingParams
from capax.endpoints import BudgetExceeded, Endpoint
from capax.errors import CapaxError
from capax.files.run_folder import Status
from capax.methods import Chosen
from capax.scaling.run_directory import RunDirectory, Sample, Timing, read_rows
from capax.scaling.sampling import SHIPPED_FIELDS, block_seed, load, verify
from capax.scaling.strategies.strategy import answer
from capax.scaling.tasks import Task, digest

LIMITED = "budget"  # finish reason of a task whose budget held no answer


@dataclass(frozen=True, slots=True)
class Cell:
    """One strategy under one cap on a task's tokens, prompt and new together; None: no cap."""

    strategy: Chosen
    cap: int | None = None

    @property
    def name(self) -> str:
        """What the cell's folder is called."""
        spelled = re.sub(
            "[^A-Za-z0-9.-]", "_", re.sub("[:,]", "-", str(self.strategy)).replace("=", "")
        )
        return spelled if self.cap is None else f"{spelled}-{self.cap}"


@dataclass(frozen=True, slots=True)
class Row:
    """What a cell got right and what it took, per task; `stderr` over tasks."""

    strategy: str
    cap: int | None
    n_tasks: int
    accuracy: float
    stderr: float
    tokens: float
    new_tokens: float
    calls: float
    is_best: bool = False  # no other cell is as accurate with fewer tokens


def shared_config(
    model: str, tasks: Sequence[Task], params: SamplingParams, seed: int
) -> dict[str, Any]:
    """Return what decides the answers of all cells; strategy and cap come to it."""
    return {
        "model": model,
        "tasks": digest(tasks),
        "seed": seed,
        "sampling": {name: getattr(params, name) for name in SHIPPED_FIELDS},
    }


async def compare(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    cells: Sequence[Cell],
    params: SamplingParams,
    folder: Path,
    *,
    model: str,
    seed: int = 0,
    concurrency: int = 1,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Answer every task by every cell, going on from what `folder` holds; returns the table.

    Raises EndpointError, with all finished answers kept, if the model fails.
    """
    total = len(tasks) * len(cells)
    done = 0
    for cell in cells:
        config = {
            **shared_config(model, tasks, params, seed),
            "strategy": str(cell.strategy),
            "max_total_tokens": cell.cap,
        }
        with RunDirectory(folder / cell.name, config, facts) as run:
            run.set_status("started", problems={t.id: t.checker.name for t in tasks})
            left = [t for t in tasks if (t.id, 0) not in run.samples]
            before = done + len(tasks) - len(left)

            def report(
                finished: int, run: RunDirectory = run, n: int = len(left), before: int = before
            ) -> None:
                run.log_progress(finished, n)
                if progress:
                    progress(before + finished, total)

            status: Status = "error"
            try:
                await _answer_all(endpoint, left, cell, params, run, seed, concurrency, report)
                verify(run, tasks)
                status = "success"
            except BudgetExceeded:
                status = "limited"
                raise
            except (asyncio.CancelledError, KeyboardInterrupt):
                status = "cancelled"
                raise
            finally:
                run.set_status(status, ledger=endpoint.ledger.to_dict())
        done += len(tasks)
    return table(folder, cells)


async def _answer_all(
    endpoint: Endpoint, tasks: Sequence[Task], cell: Cell, params: SamplingParams,
    run: RunDirectory, seed: int, concurrency: int, report: Callable[[int], None],
) -> None:  # fmt: skip
    waiting = iter(tasks)
    failures: list[CapaxError] = []
    finished = 0

    async def work() -> None:
        nonlocal finished
        for task in waiting:
            if failures:
                return
            try:
                await _answer_one(endpoint, task, cell, params, run, seed)
            except CapaxError as error:
                failures.append(error)
                return
            finished += 1
            report(finished)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    if failures:
        raise failures[0]


async def _answer_one(
    endpoint: Endpoint, task: Task, cell: Cell, params: SamplingParams, run: RunDirectory, seed: int
) -> None:
    own_seed = block_seed(seed, task.id, 0)
    started = time.monotonic()
    try:
        got = await answer(
            cell.strategy.options,
            endpoint,
            task.prompt,
            replace(params, seed=own_seed),
            max_total_tokens=cell.cap,
        )
    except BudgetExceeded:
        if cell.cap is None or endpoint.ledger.tokens_left is not None:
            raise  # the cap of the whole run, not of this task
        run.add_samples([Sample(task.id, 0, own_seed, 0, 0, LIMITED, "")])
        return
    usage = got.usage
    # Calls first: a sample that is there has its timing.
    run.add_timing(
        Timing(
            task.id, 0, got.n_calls, usage.prompt_tokens, usage.cached_tokens,
            usage.completion_tokens, time.monotonic() - started, time.time(),
        )
    )  # fmt: skip
    run.add_samples([
        Sample(
            task.id, 0, own_seed, usage.prompt_tokens, usage.completion_tokens,
            got.finish_reason, got.text,
        )
    ])  # fmt: skip


def table(folder: Path, cells: Sequence[Cell]) -> list[Row]:
    """Read the finished cells of a folder and mark those that no other beats."""
    rows = [_row(folder / cell.name, cell) for cell in cells]
    return [
        replace(row, is_best=not any(_beats(other, row) for other in rows if other is not row))
        for row in rows
    ]


def _row(path: Path, cell: Cell) -> Row:
    outcome = load(path)
    right = outcome.counts.correct / outcome.counts.n
    samples = list(read_rows(path, Sample))
    calls = {timing.problem_id: timing.n for timing in read_rows(path, Timing)}
    n = right.size
    return Row(
        str(cell.strategy),
        cell.cap,
        n,
        float(right.mean()),
        float(right.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0,
        float(np.mean([s.prompt_tokens + (s.new_tokens or 0) for s in samples])),
        float(np.mean([s.new_tokens or 0 for s in samples])),
        sum(calls.values()) / n,
    )


def _beats(other: Row, row: Row) -> bool:
    """Say whether `other` is at least as accurate and as cheap, and better in one of both."""
    return (
        other.accuracy >= row.accuracy
        and other.tokens <= row.tokens
        and (other.accuracy > row.accuracy or other.tokens < row.tokens)
    )


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table ready for JSON."""
    return [asdict(row) for row in rows]
