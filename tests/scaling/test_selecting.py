"""Votes over a run on disk, and strategies compared: resumable, capped, and free of the model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from capax import SamplingParams
from capax.errors import ConfigError, EndpointError
from capax.scaling.comparing import LIMITED, Cell, Row, compare
from capax.scaling.run_directory import RunDirectory, Sample, read_rows
from capax.scaling.sampling import SamplePlan, load, sample
from capax.scaling.selecting import exact_vote, read_pools, select
from capax.scaling.selection import Answers, accuracy_of, majority
from capax.scaling.strategies.strategy import parse_strategy
from tests.scaling.scripted import Scripted, sums
from tests.scaling.strategies.talker import Talker

TASKS = sums(4)
PARAMS = SamplingParams(max_tokens=8, temperature=0.8)
CELLS = [
    Cell(parse_strategy("single")),
    Cell(parse_strategy("majority:n=5"), 60),
    Cell(parse_strategy("majority:n=5"), 11),
]


def talker(fail_at: tuple[int, ...] = ()) -> Talker:
    def reply(request: object, number: int) -> str:
        prompt, seed = str(request.prompt), request.params.seed  # type: ignore[attr-defined]
        right = 2 * int(prompt.split()[0])
        return f"It is {right if hash((seed, number)) % 3 else 999}."

    return Talker(reply, fail_at=fail_at)


def run(folder: Path, endpoint: Talker) -> list[Row]:
    return asyncio.run(compare(endpoint, TASKS, CELLS, PARAMS, folder, model="talker"))


def test_votes_are_a_function_of_the_pool(tmp_path: Path) -> None:
    plan = SamplePlan(n=16, params=PARAMS)
    with RunDirectory(tmp_path / "run", plan.settings(TASKS, "scripted")) as directory:
        asyncio.run(sample(Scripted(), TASKS, directory, plan))
    pools = read_pools(tmp_path / "run")
    rows = select(pools, [1, 4, 16])
    assert rows == select(read_pools(tmp_path / "run"), [1, 4, 16])
    answers = load(tmp_path / "run").answers
    [sampled] = accuracy_of(majority, answers, [4], subsets=3000)
    assert abs(rows[1].vote - sampled.accuracy) <= 4 * sampled.std / np.sqrt(3000) + 1e-9
    assert rows[2].vote == pytest.approx(
        np.mean([majority(a.codes, None) @ a.correct for a in answers])
    )
    # All lengths are equal: nothing finishes first, nothing is saved.
    assert [row.first_saves for row in rows] == [0.0, 0.0, 0.0]
    with pytest.raises(ConfigError, match="1 to 16"):
        select(pools, [17])


def test_two_right_answers_share_the_vote() -> None:
    answers = Answers(["a", "b", "c", None], np.array([1.0, 1.0, 0.0, 0.0]))
    assert exact_vote(answers, 4) == pytest.approx(2 / 3)
    assert exact_vote(answers, 1) == pytest.approx(1 / 2)


def test_each_strategy_has_its_row_and_its_cap(tmp_path: Path) -> None:
    endpoint = talker()
    single, majority_row, poor = run(tmp_path, endpoint)
    assert (single.strategy, single.calls, single.tokens) == ("single", 1.0, 13.0)
    assert majority_row.tokens <= 60
    assert majority_row.new_tokens == 15
    assert poor.tokens <= 11
    assert sum(r.tokens * r.n_tasks for r in (single, majority_row, poor)) == (
        endpoint.ledger.totals.tokens
    )
    assert any(row.is_best for row in (single, majority_row, poor))


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(EndpointError):
        run(tmp_path, talker(fail_at=(2,)))
    kept = list(read_rows(tmp_path / "single", Sample))
    assert len(kept) == 2
    endpoint = talker()
    again = run(tmp_path, endpoint)
    assert len(list(read_rows(tmp_path / "single", Sample))) == 4
    before = len(endpoint.asked)
    assert run(tmp_path, endpoint) == again
    assert len(endpoint.asked) == before


def test_a_budget_without_room_for_an_answer_is_a_wrong_answer(tmp_path: Path) -> None:
    cells = [Cell(parse_strategy("single"), 10)]
    [row] = asyncio.run(compare(talker(), TASKS, cells, PARAMS, tmp_path, model="talker"))
    assert (row.accuracy, row.tokens, row.calls) == (0.0, 0.0, 0.0)
    [first, *_] = read_rows(tmp_path / cells[0].name, Sample)
    assert first.finish_reason == LIMITED


def test_rounds_are_no_samples(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "rounds", {"rounds": 3}) as directory:
        directory.set_status("success", problems={"a": "numeric"})
    with pytest.raises(ConfigError, match="--mode sequential"):
        load(tmp_path / "rounds")
