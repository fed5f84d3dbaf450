"""Specialists learn problems that are right and never held out, and are asked what they learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capax import LLM
from capax.errors import ConfigError
from capax.measuring.procbench import solve
from capax.measuring.procbench.evaluate import question_prompt, reference
from capax.measuring.procbench.specialty import (
    LEARNT_STEPS,
    SPECIALTIES,
    held_out_problems,
    is_held_out,
    specialty_named,
)
from capax.training.records import END

NAMES = sorted(SPECIALTIES)


@pytest.mark.parametrize("name", NAMES)
def test_records_are_right_and_never_held_out(name: str) -> None:
    specialty, rng = specialty_named(name), np.random.default_rng(0)
    lengths = set()
    for _ in range(200):
        record = specialty.record(rng)
        question = "".join(record.prompt).removesuffix("\n")
        assert not is_held_out(question)
        assert {*record.prompt, *record.answer} <= {*specialty.tokens, END}
        states = solve(name, question)
        lengths.add(len(states))
        answer = "".join(record.answer[:-1])
        listed = ",".join(f'"{state}"' for state in states[:-1])
        assert answer == f'{{"intermediate":[{listed}],"final":"{states[-1]}"}}'
    assert lengths == set(LEARNT_STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_problems_to_ask_are_held_out_and_fit(name: str) -> None:
    problems = held_out_problems(name, [2, 8, 25], 5, seed=12)
    assert [p.steps for p in problems] == [2] * 5 + [8] * 5 + [25] * 5
    assert len({p.digest for p in problems}) == 15
    assert all(is_held_out(p.question) for p in problems)
    longest = max(len(question_prompt(p)) + len(reference(p)) for p in problems)
    assert longest < SPECIALTIES[name].context_len
    assert held_out_problems(name, [8], 3, seed=12) == problems[5:8]


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
