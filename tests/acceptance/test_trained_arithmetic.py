"""The models trained here on arithmetic: samples have their exact chances, and search pays.

The long runs are `benchmarks.monkeys` and `benchmarks.deep_fast`; these are their fast parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.monkeys import chi_squared_range, exact_chance
from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import Outcome, SamplePlan, load, sample
from capax.scaling.tasks import Task, read_tasks

MODELS = Path(__file__).parents[2] / "models" / "arithmetic"


def drawn(llm: LLM, tasks: list[Task], n: int, path: Path, temperature: float) -> Outcome:
    most = min(110, llm.context_len - 16)
    plan = SamplePlan(n, SamplingParams(max_tokens=most, temperature=temperature), choices=64)

    async def run() -> None:
        with RunDirectory(path, plan.settings(tasks, "trained")) as directory:
            async with LocalEndpoint(llm) as endpoint:
                await sample(endpoint, tasks, directory, plan)

    asyncio.run(run())
    return load(path)


@pytest.mark.parametrize("name", ["multiplication", "direct", "search"])
def test_the_file_is_what_its_record_says(name: str) -> None:
    record = json.loads((MODELS / f"{name}.json").read_text())
    content = (MODELS / f"{name}.gguf").read_bytes()
    assert record["sha256"][f"{name}.gguf"] == hashlib.sha256(content).hexdigest()
    assert record["recipe"]["task"] == name
    steps = [json.loads(line) for line in (MODELS / f"{name}.log.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == record["recipe"]["steps"]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_samples_have_the_chances_of_one_pass(tmp_path: Path, temperature: float) -> None:
    tasks = read_tasks(MODELS / "questions.jsonl")[:12]
    n = 256
    with LLM(MODELS / "multiplication.gguf", threads=1, n_sequences=64, parallel=64) as llm:
        p = np.array([exact_chance(llm, task, temperature) for task in tasks])
        made = drawn(llm, tasks, n, tmp_path / "run", temperature).counts.correct
    tested = n * p * (1 - p) >= 5
    assert tested.sum() >= 4
    z = (made - n * p)[tested] / np.sqrt(n * p * (1 - p))[tested]
    low, high = chi_squared_range(int(tested.sum()))
    assert low < (z**2).sum() < high
    shuffled = np.roll(p, 1)[tested]
    other = (made[tested] - n * shuffled) / np.sqrt(n * shuffled * (1 - shuffled))
    assert (other**2).sum() > high


def test_a_model_that_searches_beats_any_vote_of_one_that_does_not(tmp_path: Path) -> None:
    tasks = read_tasks(MODELS / "equations.jsonl")[:24]
    found = {}
    for name in ("direct", "search"):
        with LLM(MODELS / f"{name}.gguf", threads=1, n_sequences=16, parallel=64) as llm:
            found[name] = drawn(llm, tasks, 8, tmp_path / name, 1.0)
    rights = {name: outcome.counts.correct / 8 for name, outcome in found.items()}
    # Even if every equation with a right sample were won by the vote.
    assert (found["direct"].counts.correct > 1).mean() + 0.1 < rights["search"].mean()
    assert rights["search"].mean() > 0.8
