"""A specialist follows its procedure as far as it learnt it, and breaks beyond (acceptance 6, 8).

The long run with intervals is `benchmarks.procbench`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.procbench import PUBLISHED_BINS, ask, drop_p, falls, shares
from capax import LLM
from capax.measuring.procbench.evaluate import Settings
from capax.measuring.procbench.hazard import Chain, kaplan_meier
from capax.measuring.procbench.record import Record
from capax.measuring.procbench.specialty import held_out_problems, is_held_out

MODELS = Path(__file__).parents[2] / "models" / "procbench"
MODEL = MODELS / "rhythm.gguf"
FREE = Settings("free", 900, "question")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, threads=2, n_sequences=16, parallel=16) as llm:
        yield llm


def answered(
    llm: LLM,
    folder: Path,
    steps: Sequence[int],
    n: int,
    settings: Settings = FREE,
    task: str = "Rhythm",
) -> list[Record]:
    problems = held_out_problems(task, steps, n, seed=31)
    assert all(is_held_out(p.question) for p in problems)
    llm.close()
    return ask(llm, problems, settings, folder / f"{settings.mode}{settings.max_new_tokens}.jsonl")


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.gguf")), ids=lambda p: p.stem)
def test_the_file_is_what_its_record_says(path: Path) -> None:
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["recipe"]["task"].lower() == path.stem
    log = path.with_suffix(".log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == record["recipe"]["steps"]


def test_what_was_learnt_is_right_and_more_steps_are_not(llm: LLM, tmp_path: Path) -> None:
    records = answered(llm, tmp_path, [2, 5, 8, 12, 25], 8)
    by_steps = {s: [r for r in records if r.steps == s] for s in (2, 5, 8, 12, 25)}
    for some in by_steps.values():
        found = shares(some)
        assert found["sm"] <= found["pa"]
        assert found["sm"] <= found["fm"]
    assert all(shares(by_steps[s])["sm"] >= 0.9 for s in (2, 5, 8))
    assert shares(by_steps[25])["sm"] < shares(by_steps[8])["sm"]
    assert drop_p(by_steps[5] + by_steps[8], by_steps[25]) < 0.05
    for s, some in by_steps.items():
        for point in kaplan_meier([Chain(r.pml, s) for r in some]):
            assert abs(point.survival - point.fraction) < 1e-12


def test_the_form_costs_nothing_and_fewer_tokens_never_help(llm: LLM, tmp_path: Path) -> None:
    free = answered(llm, tmp_path, [3, 8], 6)
    as_json = answered(llm, tmp_path, [3, 8], 6, Settings("json", 900, "question"))
    short = answered(llm, tmp_path, [3, 8], 6, Settings("free", 64, "question"))
    assert shares(as_json)["sm"] >= shares(free)["sm"] - 0.02
    assert all(r.is_read for r in as_json)
    assert shares(short)["pa"] <= shares(free)["pa"] + 0.005
    assert all(r.completion_tokens <= 64 for r in short)
    assert all(r.sm == 0 for r in short if r.is_cut)


def test_another_operation_ends_at_the_length_that_was_learnt_too(tmp_path: Path) -> None:
    """PushPop's specialist learnt 2 to 6 steps."""
    with LLM(MODELS / "pushpop.gguf", threads=1, n_sequences=16, parallel=16) as llm:
        free = Settings("free", 200, "question")
        records = answered(llm, tmp_path, [2, 4, 6, 8], 12, free, task="PushPop")
    sm = {s: shares([r for r in records if r.steps == s])["sm"] for s in (2, 4, 6, 8)}
    assert min(sm[2], sm[4], sm[6]) >= 0.8
    assert sm[8] <= 0.2


def test_the_measured_specialist_falls_over_the_published_bins() -> None:
    result = json.loads((MODELS.parents[1] / "benchmarks/results/procbench.json").read_text())
    (rhythm,) = [one for one in result["specialists"] if one["task"] == "Rhythm"]
    found = falls(rhythm["by_steps"], PUBLISHED_BINS)
    assert list(found) == ["2-6 to 7-16", "7-16 to 17-25"]
    assert max(found.values()) < 0.05
    assert found.items() <= rhythm["falls"].items()
