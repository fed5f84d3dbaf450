"""The models trained here on arithmetic: samples have their exact chances, and search pays.

The long runs are `benchmarks.monkeys` and `benchmarks.deep_fast`; these are their fast parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.monkeys import chi_squared_range, exact_chance
from capax import LLM, SamplingParams
from capax.endpoints import (
    Choice,
    Completion,
    GenerateRequest,
    Ledger,
    Price,
    TokenScores,
)
from capax.endpoints.local import LocalEndpoint
from capax.engine.outputs import Usage
from capax.errors import EndpointError
from capax.scaling.calibration import area_within, fit, split
from capax.scaling.markers import read_traces
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import Outcome, SamplePlan, load, sample
from capax.scaling.selecting import read_pools
from capax.scaling.strategies.strategy import answer, parse_strategy
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


def test_the_pair_has_one_size_and_learnt_from_as_many_tokens() -> None:
    direct, search = (
        json.loads((MODELS / f"{name}.json").read_text()) for name in ("direct", "search")
    )
    for equal in ("n_parameters", "n_tokens", "encoding"):
        assert direct[equal] == search[equal]
    recipes = [{**record["recipe"], "task": ""} for record in (direct, search)]
    assert recipes[0] == recipes[1]
    with LLM(MODELS / "direct.gguf", threads=1) as a, LLM(MODELS / "search.gguf", threads=1) as b:
        assert replace(a.config, name=b.config.name) == b.config


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


class Stepped:
    """An endpoint that samples a token of each running answer at a time, as a batch does."""

    name = "stepped"
    max_choices = 1

    def __init__(self, lengths: list[int]) -> None:
        self.ledger = Ledger()
        self._lengths = iter(lengths)

    async def count_prompt(self, prompt: object) -> int:
        return 1

    async def generate(self, request: GenerateRequest) -> Completion:
        length, taken = next(self._lengths), 0
        with self.ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=1, new_tokens=110,
            also=request.ledger,
        ) as call:  # fmt: skip
            try:
                while taken < length:
                    for _ in range(10):  # longer than what it takes to be cancelled
                        await asyncio.sleep(0)
                    taken += 1
            finally:
                call.settle(Usage(1, taken))
        return Completion((Choice(0, "so 7", "stop", None, None, length),), Usage(1, length), 0, "")

    async def score(self, text: str) -> TokenScores:
        raise EndpointError("no probabilities")

    async def aclose(self) -> None:
        pass


def test_finishing_first_takes_the_tokens_that_lengths_foretell(tmp_path: Path) -> None:
    """Lengths of real traces, 16 beside each other, over when 8 have ended.

    On an engine the rest of a step is paid for as well, which depends on the machine.
    """
    spec, n = parse_strategy("majority:n=16,stop=first").options, 16
    tasks = read_tasks(MODELS / "equations.jsonl", limit=12)
    with LLM(MODELS / "search.gguf", threads=1, n_sequences=16, parallel=64) as llm:
        drawn(llm, tasks, n, tmp_path / "run", 1.0)
    measured = foretold = whole = 0
    for pool in read_pools(tmp_path / "run"):
        lengths = [int(length) for length in pool.n_tokens]
        params = SamplingParams(max_tokens=110, temperature=1.0, seed=7)
        got = asyncio.run(answer(spec, Stepped(lengths), "q", params))
        measured += got.usage.completion_tokens
        foretold += int(np.minimum(lengths, sorted(lengths)[n // 2 - 1]).sum())
        whole += sum(lengths)
    assert measured / whole == pytest.approx(foretold / whole, abs=0.01)
    assert foretold / whole < 0.9


def test_marks_learnt_from_some_equations_tell_right_from_wrong_in_others(tmp_path: Path) -> None:
    tasks = read_tasks(MODELS / "equations.jsonl", limit=40)
    with LLM(MODELS / "search.gguf", threads=1, n_sequences=16, parallel=64) as llm:
        drawn(llm, tasks, 8, tmp_path / "run", 1.0)
    dev, test = split(read_traces(tmp_path / "run"))
    calibration = fit(dev)
    area = area_within(calibration, test)
    assert calibration.marks.length < 0
    assert area.mean > 0.55
    assert area.shuffled == pytest.approx(0.5, abs=0.1)


def test_the_long_run_of_the_pair_says_what_holds_and_what_does_not() -> None:
    """The committed run of `benchmarks.deep_fast`: 600 equations, 64 samples each."""
    path = MODELS.parents[1] / "benchmarks" / "results" / "deep_fast.json"
    found = json.loads(path.read_text())
    direct = max(vote["accuracy"] for vote in found["direct_votes"])
    assert found["search_votes"][0]["accuracy"] > direct + 0.1
    assert 0.05 <= found["direct_votes"][0]["accuracy"] <= 0.6  # a task it can do a part of
    assert found["lengths"]["n_mixed"] >= 50
    assert found["lengths_without_capped"]["median_difference"] < 0
    assert found["lengths_without_capped"]["p"] < 0.01
    [first] = found["selected_16"]
    assert first["short"] >= first["vote"] - 0.005
    assert first["first_saves"] >= 0.25
    area = found["marks"]["area"]
    assert area["n_problems"] >= 100
    assert area["low"] > 0.55
    assert area["shuffled"] == pytest.approx(0.5, abs=0.03)
    assert found["truncated"]["0.0"]["accuracy"] <= found["direct_votes"][0]["accuracy"] + 0.03
    failing = [row["statement"] for row in found["statements"] if not row["holds"]]
    # Revision beats the vote as it mends wrong answers and breaks none; truncation is not monotone.
    assert failing == [
        "the vote, less revision, at 89 tokens, its worst",
        "a trace cut to 10%, less one cut to 0%",
        "a trace cut to 50%, less one cut to 10%",
    ]
    assert found["revision"]["fixed"][0] > 0.5
    assert max(found["revision"]["broken"]) < 0.01
