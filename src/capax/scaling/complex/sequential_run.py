"""Sequential runs over a file of tasks, kept as they are made, beside what parallel calls get.

A run that helps must beat independent calls and, since being told "wrong" already rules an answer
out, also calls of which repetitions were removed; both are computed from parallel samples of the
same model at equal calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from capax.decoding.params import SamplingParams
from capax.endpoints import Endpoint
from capax.errors import ConfigError, FileFormatError
from capax.scaling.complex.critic import Critic, Rounds, sequential, solved_within
from capax.scaling.complex.families import FAMILIES, instance_of
from capax.scaling.complex.instance import Instance
from capax.scaling.complex.study import Played, best_of
from capax.scaling.tasks import Task


def instances_of(tasks: Sequence[Task]) -> list[Instance]:
    """Return the generated instances among tasks. Raises ConfigError if there is none."""
    found = [instance_of(task.reference) for task in tasks if task.checker.name in FAMILIES]
    if not found:
        raise ConfigError("no task of this file is generated; 'capax scale tasks generate' does")
    return found


async def run_sequential(
    endpoint: Endpoint,
    instances: Sequence[Instance],
    critic: Critic,
    params: SamplingParams,
    path: Path,
    settings: dict[str, Any],
    *,
    rounds: int = 3,
    seed: int = 0,
    concurrency: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rounds]:
    """Return every instance's run, asking only for those that `path` does not have.

    `path`: JSON lines, the settings first; each run is written as soon as it is over. Raises
    ConfigError if it is of other settings, FileFormatError if it is damaged before its last line.
    """
    known = _opened(path, settings)
    gate = asyncio.Semaphore(concurrency)
    n_done = sum(instance.key in known for instance in instances)

    async def one(instance: Instance) -> None:
        nonlocal n_done
        if instance.key in known:
            return
        async with gate:
            made = await sequential(endpoint, instance, critic, params, rounds=rounds, seed=seed)
        known[instance.key] = made
        with path.open("ab") as file:
            file.write(msgspec.json.encode(asdict(made)) + b"\n")
        n_done += 1
        if progress:
            progress(n_done, len(instances))

    async with asyncio.TaskGroup() as group:
        for instance in instances:
            group.create_task(one(instance))
    return [known[instance.key] for instance in instances]


def _opened(path: Path, settings: dict[str, Any]) -> dict[str, Rounds]:
    """Return the runs that are there, after cutting off a line that was being written."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(settings) + b"\n")
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    lines = whole.splitlines()
    try:
        given = msgspec.json.decode(lines[0]) if lines else None
        found = [msgspec.json.decode(line, type=Rounds) for line in lines[1:]]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise FileFormatError(f"{path} is no file of sequential runs: {e}") from None
    wanted = msgspec.json.decode(msgspec.json.encode(settings))
    if given != wanted:
        differs = [k for k in wanted if not isinstance(given, dict) or given.get(k) != wanted[k]]
        raise ConfigError(
            f"{path} is of a run with another {', '.join(differs) or 'beginning'}; give another "
            "file, or the settings it was made with"
        )
    return {run.key: run for run in found}


def without_repeats(played: Sequence[Played], n: int) -> np.ndarray:
    """Return each instance's chance that the first n different answers hold a right one, [M].

    Its samples are taken in random order and what came before is skipped, so an answer that is
    given often comes early, and no instance is solved less often than by n plain samples.
    Unreadable ones are skipped too. Exact: with each sample at a uniform time, the first of G right
    ones is at t with density G (1 - t)^(G - 1), and by then a wrong answer given c times has come
    with chance 1 - (1 - t)^c; the integral of a polynomial is a sum over Gauss-Legendre points.
    """
    return np.array([_chance(one, n) for one in played])


def _chance(one: Played, n: int) -> float:
    n_right = 0
    counts: Counter[str] = Counter()
    for answer, is_right in zip(one.answers, one.correct, strict=True):
        if answer is not None and is_right:
            n_right += 1
        elif answer is not None:
            counts[answer] += 1
    if n_right == 0:
        return 0.0
    if n > len(counts):
        return 1.0
    degree = n_right - 1 + counts.total()
    points, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    t = (points + 1) / 2
    seen = np.zeros((len(counts) + 1, t.size))  # [k]: k wrong answers have come
    seen[0] = 1.0
    for count in counts.values():
        here = 1 - (1 - t) ** count
        seen[1:] = seen[1:] * (1 - here) + seen[:-1] * here
        seen[0] *= 1 - here
    is_late = seen[n:].sum(axis=0)  # n wrong ones were before it
    return float(1 - (weights / 2 * n_right * (1 - t) ** (n_right - 1) * is_late).sum())


def table(
    runs: Sequence[Rounds], parallel: Sequence[Played] | None, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each number of calls: solved, and what parallel calls would have solved.

    `tokens`: new ones per task, answers and critic; `parallel` None: not sampled.
    """
    rows = []
    for n in range(1, rounds + 1):
        answers = [sum(run.answer_tokens[:n]) for run in runs]
        critic = [sum(run.critic_tokens[: n - 1]) for run in runs]
        row: dict[str, Any] = {
            "calls": n,
            "sequential": solved_within(list(runs), n),
            "answer_tokens": float(np.mean(answers)),
            "critic_tokens": float(np.mean(critic)),
        }
        if parallel is not None:
            row["parallel"] = float(best_of(parallel, n).mean())
            row["parallel_without_repeats"] = float(without_repeats(parallel, n).mean())
        rows.append(row)
    return rows
