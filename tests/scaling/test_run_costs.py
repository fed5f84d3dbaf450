"""What units of a run took, from the times it kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capax import SamplingParams
from capax.cli import main
from capax.scaling.run_costs import RoundCost, UnitCost, unit_cost
from capax.scaling.run_directory import RunDirectory, Sample, Timing, Verdict
from capax.scaling.sampling import SamplePlan
from tests.scaling.test_selecting import TASKS


def run_of(tmp_path: Path, timings: list[Timing], new_tokens: int | None = 10) -> Path:
    """Four samples of each task, half of them right."""
    path = tmp_path / "run"
    plan = SamplePlan(4, SamplingParams(max_tokens=4), choices=4)
    with RunDirectory(path, plan.settings(TASKS, "none")) as run:
        for task in TASKS:
            run.add_samples(Sample(task.id, i, 0, 5, new_tokens, "stop", "x") for i in range(4))
            run.add_verdicts(
                Verdict(task.id, i, task.checker.name, task.checker.version, "x", i % 2 == 0)
                for i in range(4)
            )
        for timing in timings:
            run.add_timing(timing)
        run.set_status("success", problems={t.id: t.checker.name for t in TASKS})
    return path


def timing(task: int, seconds: float, finished_at: float) -> Timing:
    return Timing(TASKS[task].id, 0, 4, 5, 0, 40, seconds, finished_at)


def test_calls_that_overlap_count_once_and_stops_do_not_count(tmp_path: Path) -> None:
    path = run_of(tmp_path, [timing(0, 4.0, 104.0), timing(1, 3.0, 106.0), timing(2, 2.0, 900.0)])
    cost = unit_cost(path)
    assert cost.tokens == 10
    assert cost.seconds == pytest.approx((6.0 + 2.0) / 12)
    assert cost.rounds == ()
    assert cost.chain_seconds(3) is None


def test_a_call_that_was_made_again_counts_as_the_last_one(tmp_path: Path) -> None:
    path = run_of(tmp_path, [timing(0, 4.0, 104.0), timing(0, 2.0, 202.0)])
    assert unit_cost(path).seconds == pytest.approx(2.0 / 4)


def test_what_is_not_known_is_none(tmp_path: Path) -> None:
    assert unit_cost(run_of(tmp_path, [], new_tokens=None)) == UnitCost(None, None)


def test_a_longer_chain_goes_on_like_its_last_round() -> None:
    rounds = (RoundCost(5.0, 100, 10), RoundCost(1.0, 10, 10))
    cost = UnitCost(10, 3.0, rounds)
    assert [cost.chain_seconds(n) for n in (1, 2, 5)] == [5.0, 6.0, 9.0]


def test_a_plan_says_what_it_costs_in_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_of(tmp_path, [timing(i, 4.0, 104.0 + 10 * i) for i in range(3)])
    assert main.run(["scale", "plan", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    seconds = 12.0 / 12
    assert report["expected_seconds"] == pytest.approx(seconds * report["expected_tokens"] / 10)
    assert main.run(["scale", "plan", str(path)]) == 0
    assert " s each" in capsys.readouterr().out
