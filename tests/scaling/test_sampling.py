"""Repeated sampling: the same records whatever the order, the stops and the concurrency."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from capax import LLM, SamplingParams
from capax.endpoints import Ledger
from capax.endpoints.local import LocalEndpoint
from capax.errors import ConfigError, EndpointError, FileFormatError, StoreError
from capax.files.run_folder import new_run_path, read_manifest
from capax.scaling.checkers import checker_named
from capax.scaling.run_directory import RunDirectory, Sample, Timing, Verdict, read_rows
from capax.scaling.sampling import SamplePlan, block_seed, load, sample, verify
from capax.scaling.tasks import Task
from tests.models import gguf_model
from tests.scaling.scripted import Scripted, sums

PLAN = SamplePlan(n=20, params=SamplingParams(max_tokens=8), choices=8, concurrency=3)
TASKS = sums(5)


def draw(path: Path, endpoint: Scripted, plan: SamplePlan = PLAN, tasks: list[Task] = TASKS) -> str:
    with RunDirectory(path, plan.settings(tasks, "scripted")) as run:
        return asyncio.run(sample(endpoint, tasks, run, plan))


def lines(path: Path, name: str = "samples") -> list[bytes]:
    return sorted((path / f"{name}.jsonl").read_bytes().splitlines(keepends=True))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    draw(tmp_path / "whole", Scripted())
    return tmp_path / "whole"


def test_a_run_holds_every_sample_once(whole: Path) -> None:
    keys = [made.key for made in read_rows(whole, Sample)]
    assert sorted(keys) == sorted(itertools.product([t.id for t in TASKS], range(20)))
    assert len(lines(whole, "verdicts")) == 100
    assert [t.n for t in read_rows(whole, Timing)] == [8, 8, 4] * 5
    manifest = read_manifest(whole)
    assert manifest["status"] == "success"
    assert manifest["n_samples"] == 100
    assert manifest["ledger"]["total"]["completion_tokens"] == 200
    assert not list(whole.glob(".*.part"))


def test_verdicts_are_those_of_the_texts(whole: Path) -> None:
    texts = {made.key: made.text for made in read_rows(whole, Sample)}
    truth = {task.id: task.reference for task in TASKS}
    for verdict in read_rows(whole, Verdict):
        answer = texts[verdict.problem_id, verdict.sample_idx].split()[-1].rstrip(".")
        assert verdict.answer == answer
        assert verdict.correct == (answer == truth[verdict.problem_id])
    outcome = load(whole)
    assert outcome.counts.n_problems == len(TASKS)
    assert 0 < outcome.counts.correct.sum() < 100
    assert outcome.mean_new_tokens == 2


def test_concurrency_and_order_change_no_record(whole: Path, tmp_path: Path) -> None:
    one = SamplePlan(20, PLAN.params, choices=8, concurrency=1)
    endpoint = Scripted()
    draw(tmp_path / "one", endpoint, one)
    assert endpoint.most_at_once == 1
    assert lines(tmp_path / "one") == lines(whole)


def test_a_cut_at_any_byte_is_repaired(whole: Path, tmp_path: Path) -> None:
    content = (whole / "samples.jsonl").read_bytes()
    for cut in [0, 1, 137, len(content) // 2, len(content) - 1, len(content)]:
        path = tmp_path / f"cut{cut}"
        path.mkdir()
        (path / "manifest.json").write_bytes((whole / "manifest.json").read_bytes())
        (path / "samples.jsonl").write_bytes(content[:cut])
        (path / "verdicts.jsonl").write_bytes((whole / "verdicts.jsonl").read_bytes()[: cut // 2])
        draw(path, Scripted())
        assert lines(path) == lines(whole)
        assert lines(path, "verdicts") == lines(whole, "verdicts")


def test_a_finished_run_asks_nothing_again(whole: Path) -> None:
    endpoint = Scripted()
    assert draw(whole, endpoint) == "success"
    assert endpoint.n_calls == 0


def test_a_run_can_be_extended(whole: Path, tmp_path: Path) -> None:
    longer = SamplePlan(37, PLAN.params, choices=8, concurrency=2)
    draw(whole, Scripted(), longer)
    draw(tmp_path / "at once", Scripted(), longer)
    assert lines(whole) == lines(tmp_path / "at once")


def test_other_settings_are_refused(whole: Path) -> None:
    other = SamplePlan(20, SamplingParams(max_tokens=9), choices=8)
    with pytest.raises(ConfigError, match="begun with sampling"):
        draw(whole, Scripted(), other)
    with pytest.raises(ConfigError, match="begun with tasks"):
        draw(whole, Scripted(), tasks=sums(4))


def test_a_cap_on_tokens_ends_the_run_in_good_order(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "limited"
    endpoint = Scripted(Ledger(max_tokens=100))
    assert draw(path, endpoint) == "limited"
    assert endpoint.ledger.totals.tokens <= 100
    assert read_manifest(path)["status"] == "limited"
    assert 0 < len(lines(path)) < 100
    with pytest.raises(ConfigError, match="no checked sample"):
        load(path)
    draw(path, Scripted())
    assert lines(path) == lines(whole)


def test_a_failing_model_keeps_what_was_made(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "failed"
    with pytest.raises(EndpointError, match="scripted failure"):
        draw(path, Scripted(fail_at=6))
    assert read_manifest(path)["status"] == "error"
    assert len(lines(path)) >= 8
    assert set(lines(path)) < set(lines(whole))
    draw(path, Scripted())
    assert lines(path) == lines(whole)


def test_a_cancelled_run_says_so(tmp_path: Path) -> None:
    class Slow(Scripted):
        async def generate(self, request):  # type: ignore[no-untyped-def]
            if self.n_calls >= 4:
                await asyncio.Event().wait()
            return await super().generate(request)

    async def stopped() -> None:
        with RunDirectory(tmp_path / "run", PLAN.settings(TASKS, "scripted")) as run:
            task = asyncio.create_task(sample(Slow(), TASKS, run, PLAN))
            while len(run.samples) < 28:
                await asyncio.sleep(0)
            task.cancel()
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(stopped())
    assert read_manifest(tmp_path / "run")["status"] == "cancelled"


def test_two_writers_are_one_too_many(whole: Path) -> None:
    first = RunDirectory(whole, PLAN.settings(TASKS, "scripted"))
    with first, pytest.raises(StoreError, match="another process"):
        draw(whole, Scripted())


def test_damage_in_the_middle_is_an_error(whole: Path) -> None:
    file = whole / "samples.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    rows[3] = b'{"problem_id": 3}\n'
    file.write_bytes(b"".join(rows))
    with pytest.raises(FileFormatError, match=r"samples\.jsonl line 4 is damaged"):
        draw(whole, Scripted())
    (whole / "manifest.json").write_text("[]")
    with pytest.raises(FileFormatError, match="no manifest"):
        load(whole)


def test_a_new_checker_adds_verdicts(whole: Path) -> None:
    exact = [Task(t.id, t.prompt, f"It is {t.reference}.", checker_named("exact")) for t in TASKS]
    before = load(whole)
    with RunDirectory(whole, PLAN.settings(exact, "scripted")) as run:
        assert verify(run, exact) == 100
        assert verify(run, exact) == 0
    draw(whole, Scripted(), tasks=exact)
    after = load(whole)
    assert after.counts.correct.tolist() == before.counts.correct.tolist()
    assert after.answers[0].answers != before.answers[0].answers


def test_seeds_differ_between_blocks_and_problems() -> None:
    seeds = [block_seed(s, p, b) for s in range(4) for p in ("a", "b") for b in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**53
    assert block_seed(1, "a", 2) == 446753191894724  # runs of earlier versions go on


def test_samples_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Twenty problems, alone and many at a time, on a real (tiny) engine: the same strings."""
    tasks = [Task(f"p{i}", "the rain " * (i + 1), "x", checker_named("exact")) for i in range(20)]
    for name, concurrency, parallel in (("alone", 1, 4), ("together", 16, 64)):
        plan = SamplePlan(4, SamplingParams(max_tokens=6), choices=4, concurrency=concurrency)
        llm = LLM(gguf_model("llama"), threads=1, n_sequences=8, parallel=parallel)

        async def everything(llm: LLM = llm, plan: SamplePlan = plan, name: str = name) -> None:
            with RunDirectory(tmp_path / name, plan.settings(tasks, "tiny")) as run:
                async with LocalEndpoint(llm) as endpoint:
                    assert await sample(endpoint, tasks, run, plan) == "success"
                    totals = endpoint.ledger.totals
            made = list(read_rows(tmp_path / name, Sample))
            assert sum(s.new_tokens or 0 for s in made) == totals.completion_tokens

        asyncio.run(everything())
        llm.close()
    assert lines(tmp_path / "alone") == lines(tmp_path / "together")
    texts = {made.text for made in read_rows(tmp_path / "alone", Sample)}
    assert len(texts) > 60


def test_run_names_carry_time_and_settings(tmp_path: Path) -> None:
    settings = PLAN.settings(TASKS, "scripted")
    path = new_run_path(tmp_path, "sums", settings)
    assert path.parent == tmp_path
    assert path.name.split("-")[1] == "sums"
    assert json.dumps(settings)
    other = SamplePlan(20, PLAN.params, seed=1).settings(TASKS, "scripted")
    assert new_run_path(tmp_path, "sums", other).name[-8:] != path.name[-8:]


@pytest.mark.parametrize("field", ["n", "choices", "concurrency"])
def test_plans_have_bounds(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SamplePlan(**{"n": 1, "params": SamplingParams(), field: 0})
