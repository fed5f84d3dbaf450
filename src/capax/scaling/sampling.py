"""Repeated sampling: n independent answers to each task, into a directory that survives any stop.

"Large Language Monkeys" (2024, arXiv 2407.21787). The samples of a task are asked for in blocks of
`choices`: one call, one prompt, many answers. A block's seed is a function of the run's seed, the
task's id and the block's number, so a sample does not depend on batch, order, concurrency or
stops, wherever the endpoint honours seeds; a run goes on where it ended, and n can be raised later.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from capax.decoding.params import LIMITS, SamplingParams
from capax.endpoints import BudgetExceeded, Endpoint, GenerateRequest
from capax.errors import CapaxError, ConfigError, EndpointError
from capax.files.run_folder import Status, read_manifest
from capax.scaling.coverage import Counts
from capax.scaling.run_directory import RunDirectory, Sample, Timing, Verdict, read_rows
from capax.scaling.selection import Answers
from capax.scaling.tasks import Task, digest

Progress = Callable[[int, int], None]  # samples there are, samples there will be
SHIPPED_FIELDS = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "stop", "ignore_eos",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What to draw: n samples per task, `choices` per call, `concurrency` calls at a time.

    `params` says how; its n and seed are set per call. Only n and concurrency may differ when a run
    is continued.
    """

    n: int
    params: SamplingParams
    seed: int = 0
    choices: int = 16
    concurrency: int = 4

    def __post_init__(self) -> None:
        for name, high in (("n", 10_000_000), ("choices", LIMITS["n"].high), ("concurrency", 1024)):
            value = getattr(self, name)
            if not 1 <= value <= high:
                raise ConfigError(f"{name} is {value} but must be 1 to {high:,.0f}")

    def settings(self, tasks: Sequence[Task], model: str) -> dict[str, Any]:
        """Return what decides the samples; `model` names it, best with a digest."""
        params = asdict(replace(self.params, structured_outputs=None))
        return {
            "model": model,
            "tasks": digest(tasks),
            "seed": self.seed,
            "choices": self.choices,
            "sampling": {name: params[name] for name in SHIPPED_FIELDS},
        }


class _Block(NamedTuple):
    task: Task
    first: int
    n: int  # choices to ask for, those that are there already included


async def sample(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    run: RunDirectory,
    plan: SamplePlan,
    progress: Progress | None = None,
) -> Status:
    """Draw the samples that the run does not hold yet, and check them.

    Returns "success", or "limited" if the ledger's cap came first. Whatever was finished is
    kept, also when this raises: EndpointError if the model fails, StoreError if the disk does.
    """
    for prepare in {task.checker.prepare for task in tasks}:
        if prepare is not None:
            prepare()
    run.set_status("started", n=plan.n, problems={task.id: task.checker.name for task in tasks})
    total = plan.n * len(tasks)
    wanted = {task.id for task in tasks}
    done = sum(idx < plan.n for name, idx in run.samples if name in wanted)
    blocks = _missing(tasks, run, plan)
    failures: list[CapaxError] = []

    async def work() -> None:
        nonlocal done
        for block in blocks:
            if failures:
                return
            try:
                done += await _draw(endpoint, block, run, plan)
            except CapaxError as error:
                failures.append(error)  # the others finish the block they are at
                return
            run.log_progress(done, total)
            if progress:
                progress(done, total)

    status: Status = "error"
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.concurrency):
                group.create_task(work())
        verify(run, tasks)
        status = "success"
        if failures:
            limited = all(isinstance(failure, BudgetExceeded) for failure in failures)
            status = "limited" if limited else "error"
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = "cancelled"
        raise
    finally:
        run.set_status(status, ledger=endpoint.ledger.to_dict())
    if status == "error":
        raise next(f for f in failures if not isinstance(f, BudgetExceeded))
    return status


def _missing(tasks: Sequence[Task], run: RunDirectory, plan: SamplePlan) -> Iterator[_Block]:
    """Yield the blocks with samples to make, task by task: a prompt is kept while it is used."""
    for task in tasks:
        for first in range(0, plan.n, plan.choices):
            n = min(plan.choices, plan.n - first)
            if any((task.id, first + i) not in run.samples for i in range(n)):
                yield _Block(task, first, n)


async def _draw(endpoint: Endpoint, block: _Block, run: RunDirectory, plan: SamplePlan) -> int:
    """Make a block and keep what is new of it; returns how many samples that are."""
    seed = block_seed(plan.seed, block.task.id, block.first // plan.choices)
    params = replace(plan.params, n=block.n, seed=seed)
    answer = await endpoint.generate(GenerateRequest(block.task.prompt, params, "sample"))
    if len(answer.choices) != block.n or any(c.finish_reason == "error" for c in answer.choices):
        raise EndpointError(
            f"{endpoint.name} gave {len(answer.choices)} answers of {block.n}, or one with an "
            f"error, for task {block.task.id!r:.60}"
        )
    before = len(run.samples)
    run.add_samples(
        Sample(
            problem_id=block.task.id,
            sample_idx=block.first + choice.index,
            seed=seed,
            prompt_tokens=answer.usage.prompt_tokens,
            new_tokens=choice.n_tokens,
            finish_reason=choice.finish_reason,
            text=choice.text,
        )
        for choice in answer.choices
    )
    usage = answer.usage
    run.add_timing(
        Timing(
            block.task.id, block.first, block.n, usage.prompt_tokens, usage.cached_tokens,
            usage.completion_tokens, answer.seconds, time.time(),
        )
    )  # fmt: skip
    return len(run.samples) - before


def block_seed(seed: int, problem_id: str, block: int) -> int:
    """Return the seed of a call: 53 bits, so that any JSON reader keeps them."""
    content = f"{seed}\0{problem_id}\0{block}".encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 11


def verify(run: RunDirectory, tasks: Sequence[Task]) -> int:
    """Check the samples that have no verdict of their task's checker yet; returns how many."""
    by_id = {task.id: task for task in tasks}
    new: list[Verdict] = []
    n_new = 0
    for made in read_rows(run.path, Sample):
        task = by_id.get(made.problem_id)
        if task is None:
            continue
        checker = task.checker
        if (made.problem_id, made.sample_idx, checker.name, checker.version) in run.verdicts:
            continue
        judged = checker.judge(made.text, task.reference)
        new.append(
            Verdict(
                made.problem_id, made.sample_idx, checker.name, checker.version, *judged
            )
        )  # fmt: skip
        n_new += 1
        if len(new) >= (1000 if checker.outcome is None else 10):
            run.add_verdicts(new)
            new.clear()
    run.add_verdicts(new)
    return n_new


def verify_again(path: Path, tasks: Sequence[Task]) -> int:
    """Check the samples of a finished run with the checkers of `tasks`; returns how many.

    Only samples without a verdict of that checker and version are checked; from then on `load`
    takes these verdicts. Raises ConfigError if the run has none of the tasks.
    """
    manifest = read_manifest(path)
    problems = dict(manifest.get("problems", {}))
    known = [task for task in tasks if task.id in problems]
    if not known:
        raise ConfigError(f"{path} has samples of none of these {len(tasks)} tasks")
    for prepare in {task.checker.prepare for task in known}:
        if prepare is not None:
            prepare()
    facts = {k: v for k, v in manifest.items() if k not in ("format", "status", "config")}
    with RunDirectory(path, manifest["config"], facts) as run:
        try:
            n = verify(run, known)
            run.log("checked", n=n)
            problems |= {task.id: task.checker.name for task in known}
        finally:
            run.set_status(manifest["status"], problems=problems)
    return n


# --- what a run holds ---------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A run as it is on disk: all its problems, in the order of the tasks."""

    problem_ids: tuple[str, ...]
    counts: Counts
    answers: tuple[Answers, ...]  # of the same order
    distinct_texts: float  # share of samples whose text no earlier one of the problem has
    mean_new_tokens: float  # NaN where the endpoint did not say


def load(path: Path, *, of_rounds: bool = False) -> Outcome:
    """Read samples and verdicts. Raises ConfigError if a problem has none.

    Answers of a run of rounds depend on each other: it is read only if `of_rounds` says so.
    """
    manifest = read_manifest(path)
    if "rounds" in manifest["config"] and not of_rounds:
        raise ConfigError(
            f"{path} holds rounds, each an answer to the one before, and no independent samples; "
            f"use capax scale plan {path} --mode sequential"
        )
    problems = manifest.get("problems", {})
    texts: dict[str, set[bytes]] = {name: set() for name in problems}
    n_tokens: list[int] = []
    n_samples = 0
    for made in read_rows(path, Sample):
        if made.problem_id in texts:
            n_samples += 1
            texts[made.problem_id].add(hashlib.sha256(made.text.encode()).digest())
            if made.new_tokens is not None:
                n_tokens.append(made.new_tokens)
    verdicts: dict[str, dict[int, Verdict]] = {name: {} for name in problems}
    for verdict in read_rows(path, Verdict):
        if problems.get(verdict.problem_id) == verdict.checker:
            before = verdicts[verdict.problem_id].get(verdict.sample_idx)
            if before is None or verdict.version > before.version:
                verdicts[verdict.problem_id][verdict.sample_idx] = verdict
    empty = [name for name, found in verdicts.items() if not found]
    if empty or not problems:
        raise ConfigError(
            f"{path}: {len(empty)} of {len(problems)} problems have no checked sample "
            f"({', '.join(map(repr, empty[:3]))}); continue the run with the same command"
        )
    answers = []
    for found in verdicts.values():
        ordered = [found[idx] for idx in sorted(found)]
        answers.append(Answers([v.answer for v in ordered], np.array([v.correct for v in ordered])))
    return Outcome(
        tuple(verdicts),
        Counts(
            np.array([len(a.answers) for a in answers]),
            np.array([int(a.correct.sum()) for a in answers]),
        ),
        tuple(answers),
        sum(map(len, texts.values())) / n_samples,
        float(np.mean(n_tokens)) if n_tokens else float("nan"),
    )
