"""Rounds of rethinking: a first answer, then the model sees it and answers again.

The sequential mode of TTSPM (2025, arXiv 2505.20522). With history="last" a prompt holds the
question and the last answer only, which is what a chain of states assumes; with "all" it holds
every answer so far, so that each prompt continues the one before and an engine that keeps prefixes
reads only what was appended. Round t of chain c is sample c * rounds + t of its problem in a
`RunDirectory`; its seed depends on nothing else, and a run goes on where it was stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from capax.decoding.params import SamplingParams
from capax.endpoints import BudgetExceeded, Endpoint, GenerateRequest, Message
from capax.errors import CapaxError, ConfigError, EndpointError
from capax.files.run_folder import Status, read_manifest
from capax.scaling.rethinking import Chains
from capax.scaling.run_directory import RunDirectory, Sample, Timing
from capax.scaling.run_directory import read_rows as rows_of
from capax.scaling.sampling import Progress, SamplePlan, block_seed, load, verify
from capax.scaling.tasks import Task

History = Literal["last", "all"]
AGAIN = "Check your previous answer and answer again."


@dataclass(frozen=True, slots=True)
class RoundsPlan:
    """`chains` per task of `rounds` answers each; `again` follows an answer that is shown.

    `params`: its n and seed are set per call. Only chains and concurrency may differ when a run is
    continued.
    """

    chains: int
    rounds: int
    params: SamplingParams
    history: History = "last"
    again: str = AGAIN
    seed: int = 0
    concurrency: int = 16

    def __post_init__(self) -> None:
        for name, high in (("chains", 1_000_000), ("rounds", 10_000), ("concurrency", 1024)):
            value = getattr(self, name)
            if not 1 <= value <= high:
                raise ConfigError(f"{name} is {value} but must be 1 to {high:,}")
        if self.history not in ("last", "all"):
            raise ConfigError(f"history is {self.history!r:.40} but must be 'last' or 'all'")

    def settings(self, tasks: Sequence[Task], model: str) -> dict[str, Any]:
        """Return what decides the answers; `model` names it, best with a digest."""
        return {
            **SamplePlan(1, self.params, self.seed).settings(tasks, model),
            "rounds": self.rounds,
            "history": self.history,
            "again": self.again,
        }


def prompt_of(task: Task, answers: Sequence[str], plan: RoundsPlan) -> str | list[Message]:
    """Return the prompt of the round after these answers."""
    shown = answers if plan.history == "all" else answers[-1:]
    if isinstance(task.prompt, str):
        return task.prompt + "".join(answer + plan.again for answer in shown)
    messages = list(task.prompt)
    for answer in shown:
        messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": plan.again})
    return messages


async def run_rounds(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    run: RunDirectory,
    plan: RoundsPlan,
    progress: Progress | None = None,
) -> Status:
    """Make the rounds that the run does not hold yet, and check them.

    Returns "success", or "limited" if the ledger's cap came first. What was finished is kept, also
    when this raises: EndpointError if the model fails, StoreError if the disk does.
    """
    for prepare in {task.checker.prepare for task in tasks}:
        if prepare is not None:
            prepare()
    run.set_status(
        "started", chains=plan.chains, problems={task.id: task.checker.name for task in tasks}
    )
    texts = {made.key: made.text for made in rows_of(run.path, Sample)}
    chains = iter([(task, chain) for task in tasks for chain in range(plan.chains)])
    done, total = len(texts), plan.chains * plan.rounds * len(tasks)
    failures: list[CapaxError] = []

    async def work() -> None:
        nonlocal done
        for task, chain in chains:
            if failures:
                return
            try:
                done += await _finish(endpoint, task, chain, run, plan, texts)
            except CapaxError as error:
                failures.append(error)  # the others finish the chain they are at
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
        limited = all(isinstance(failure, BudgetExceeded) for failure in failures)
        status = "success" if not failures else "limited" if limited else "error"
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = "cancelled"
        raise
    finally:
        run.set_status(status, ledger=endpoint.ledger.to_dict())
    if status == "error":
        raise next(f for f in failures if not isinstance(f, BudgetExceeded))
    return status


async def _finish(
    endpoint: Endpoint,
    task: Task,
    chain: int,
    run: RunDirectory,
    plan: RoundsPlan,
    texts: dict[tuple[str, int], str],
) -> int:
    """Make the missing rounds of one chain, in order; returns how many they were."""
    answers: list[str] = []
    n_new = 0
    for idx in range(chain * plan.rounds, (chain + 1) * plan.rounds):
        kept = texts.get((task.id, idx))
        if kept is None:
            kept = await _answer(endpoint, task, idx, prompt_of(task, answers, plan), run, plan)
            n_new += 1
        answers.append(kept)
    return n_new


async def _answer(
    endpoint: Endpoint,
    task: Task,
    idx: int,
    prompt: str | list[Message],
    run: RunDirectory,
    plan: RoundsPlan,
) -> str:
    seed = block_seed(plan.seed, task.id, idx)
    params = replace(plan.params, n=1, seed=seed)
    made = await endpoint.generate(GenerateRequest(prompt, params, "round"))
    choice = made.choices[0]
    if choice.finish_reason == "error":
        raise EndpointError(f"{endpoint.name} failed in a round of task {task.id!r:.60}")
    usage = made.usage
    run.add_samples(
        [
            Sample(
                task.id, idx, seed, usage.prompt_tokens, choice.n_tokens, choice.finish_reason,
                choice.text,
            )
        ]
    )  # fmt: skip
    run.add_timing(
        Timing(
            task.id, idx, 1, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens,
            made.seconds, time.time(),
        )
    )  # fmt: skip
    return choice.text


def load_chains(path: Path) -> Chains:
    """Read the outcomes of a finished run of rounds.

    Raises ConfigError if it is no such run or a chain has not all of its rounds.
    """
    rounds = read_manifest(path)["config"].get("rounds")
    if not isinstance(rounds, int):
        raise ConfigError(f"{path} is no run of rounds; make one with 'capax scale rounds'")
    outcome = load(path, of_rounds=True)
    sizes = [answers.correct.size for answers in outcome.answers]
    if any(size % rounds for size in sizes):
        raise ConfigError(f"{path}: a chain has not all of its {rounds} rounds; continue the run")
    return Chains(
        np.concatenate([a.correct for a in outcome.answers]).reshape(-1, rounds),
        np.repeat(np.arange(len(sizes)), [size // rounds for size in sizes]),
    )
