"""Specialists learn problems that are right and never held out, and are asked what they learnt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from capax import LLM
from capax.errors import ConfigError
from capax.measuring.procbench import TASKS, Problem, solve, specialty
from capax.measuring.procbench.evaluate import question_prompt, reference
from capax.measuring.procbench.specialty import (
    SPECIALTIES,
    held_out_problems,
    is_held_out,
    specialty_named,
)
from capax.training.records import END, Batches, Record

NAMES = sorted(SPECIALTIES)
MODELS = Path(__file__).parents[3] / "models" / "procbench"


@pytest.mark.parametrize("name", NAMES)
def test_records_are_right_and_never_held_out(name: str) -> None:
    learnt, rng = specialty_named(name), np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        record = learnt.record(rng)
        question = "".join(record.prompt).removesuffix("\n")
        assert not is_held_out(question)
        assert {*record.prompt, *record.answer} <= {*learnt.tokens, END}
        states = solve(name, question)
        lengths.add(len(states))
        answer = "".join(record.answer[:-1])
        listed = ",".join(f'"{state}"' for state in states[:-1])
        assert answer == f'{{"intermediate":[{listed}],"final":"{states[-1]}"}}'
    assert lengths == set(learnt.learnt_steps)


@pytest.mark.parametrize("name", NAMES)
def test_problems_to_ask_are_held_out_and_fit(name: str) -> None:
    problems = held_out_problems(name, [2, 8, 25], 5, seed=12)
    assert [p.steps for p in problems] == [2] * 5 + [8] * 5 + [25] * 5
    assert len({p.digest for p in problems}) == 15
    assert all(is_held_out(p.question) for p in problems)
    longest = max(len(question_prompt(p)) + len(reference(p)) for p in problems)
    assert longest < SPECIALTIES[name].context_len
    assert held_out_problems(name, [8], 3, seed=12) == problems[5:8]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_example_is_never_learnt(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have been drawn is left out once it is public, and nothing else changes."""
    learnt = specialty_named(name)

    def digest(record: Record) -> str:
        question = "".join(record.prompt).removesuffix("\n")
        return hashlib.sha256(f"{name}\n{question}".encode()).hexdigest()[:16]

    def draw() -> list[str]:
        rng = np.random.default_rng(0)
        return [digest(learnt.record(rng)) for _ in range(100)]

    before = draw()
    public = frozenset(before[::10])
    monkeypatch.setattr(specialty, "_public_questions", lambda: public)
    after = draw()
    assert not public & {*after}
    assert [b == a for b, a in zip(before, after, strict=True)] == [b not in public for b in before]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda p: p.stem)
def test_the_kept_models_learnt_no_public_example(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws all that a recipe learns from, and compares digests; none was even left out."""
    recipe = json.loads(path.read_text())["recipe"]
    asked: list[str] = []

    def takes_all(problem: Problem) -> bool:
        asked.append(problem.digest[:16])
        return False

    monkeypatch.setattr(specialty, "is_public", takes_all)
    batches = Batches(specialty_named(recipe["task"]), recipe["seed"], recipe["tokens"], n_blocks=4)
    for step in range(recipe["steps"] + 1):
        batches.documents(step)
    assert len(asked) > 10 * recipe["steps"]
    assert not specialty._public_questions() & {*asked}


def test_all_public_examples_are_known() -> None:
    assert len(specialty._public_questions()) == 3 * 24 * len(TASKS)


def test_the_engine_reads_a_question_as_it_was_learnt(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from capax.training.record_run import RecordRecipe, train_on_records, write_model

    learnt = specialty_named("PushPop")
    recipe = RecordRecipe(task="PushPop", steps=1, tokens=300, layers=1, width=32)
    model = train_on_records(learnt, recipe, tmp_path)
    path = write_model(model, learnt, recipe, tmp_path, "F32")
    tokens = [*learnt.tokens, END]
    (problem,) = held_out_problems("PushPop", [3], 1, seed=0)
    prompt = question_prompt(problem)
    with LLM(path, threads=1) as llm:
        assert [tokens[i] for i in llm.tokenizer.encode(prompt)] == list(prompt)


def test_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="no specialist learns 'Sort'; known are Rhythm, PushPop"):
        specialty_named("Sort")
