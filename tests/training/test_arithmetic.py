"""Arithmetic to learn from: right, never held out, and a model of it that the engine runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.errors import ConfigError
from capax.training.arithmetic import (
    GRADES,
    PRIMES,
    Equation,
    held_out_equations,
    is_held_out,
    judge_prompt,
    revise_prompt,
    task_named,
    trace,
)
from capax.training.records import END, Batches

pytest.importorskip("torch")

from capax.training.arithmetic_run import write_questions
from capax.training.record_run import RecordRecipe, train_on_records, write_model

TASKS = ("multiplication", "direct", "search")
TINY = {"steps": 2, "tokens": 128, "layers": 1, "width": 32}


def test_products_are_right_and_never_held_out() -> None:
    rng = np.random.default_rng(0)
    task = task_named("multiplication")
    for _ in range(500):
        record = task.record(rng)
        prompt = "".join(record.prompt)
        a, b = map(int, prompt.removesuffix("=").split("*"))
        assert "".join(record.answer) == f"{a * b}{END}"
        assert not is_held_out(prompt)


def test_held_out_products_grow_harder() -> None:
    questions = task_named("multiplication").questions(64, 0)
    assert len({q.prompt for q in questions}) == 64
    lengths = [sorted(map(len, q.id.split("*")), reverse=True) for q in questions]
    assert [tuple(x) for x in lengths] == [g for g in GRADES[1:] for _ in range(16)]
    assert all(is_held_out(q.prompt) for q in questions)
    assert questions == task_named("multiplication").questions(64, 0)


def test_a_trace_tries_until_it_fits() -> None:
    rng = np.random.default_rng(1)
    for equation in held_out_equations(50, 3):
        assert (equation.a * equation.x + equation.b) % equation.p == equation.c
        tokens = trace(equation, rng)
        trials = [tokens[i : i + 4] for i in range(0, len(tokens) - 2, 4)]
        assert [t[3] for t in trials] == [" no"] * (len(trials) - 1) + [" yes"]
        for x, product, value, _ in trials:
            assert int(product) == equation.a * int(x) % equation.p
            assert int(value) == (int(product) + equation.b) % equation.p
        assert len({t[0] for t in trials}) == len(trials)
        assert tokens[-2:] == [" so", f" {equation.x}"]
        other = (equation.x + 1) % equation.p
        assert trace(equation, rng, first=other)[0] == f" {other}"


def test_prompts_of_judging_and_revising_show_the_answer() -> None:
    equation = Equation(3, 4, 5, PRIMES[0])
    assert "".join(judge_prompt(equation, 2)).endswith(": 2 ?")
    assert "".join(revise_prompt(equation, 2)).endswith(": 2 again :")


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_a_function_of_seed_and_step(name: str) -> None:
    batches = Batches(task_named(name), 5, 512, 4)
    first, again = batches.documents(7), Batches(task_named(name), 5, 512, 4).documents(7)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert sum(int((block >= 0).sum()) for block in first) > 50  # tokens to learn
    other = Batches(task_named(name), 6, 512, 4).documents(7)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_the_engine_reads_a_question_as_it_was_learnt(name: str, tmp_path: Path) -> None:
    task = task_named(name)
    recipe = RecordRecipe(task=name, **TINY)  # type: ignore[arg-type]
    model = train_on_records(task, recipe, tmp_path)
    path = write_model(model, task, recipe, tmp_path, "F32")
    write_questions(task, tmp_path / "questions.jsonl", 4)
    ids = {token: i for i, token in enumerate((*task.tokens, END))}
    with LLM(path, threads=1) as llm:
        for line in (tmp_path / "questions.jsonl").read_text().splitlines():
            prompt = json.loads(line)["prompt"]
            pieces = (
                list(prompt)
                if name == "multiplication"
                else prompt.replace(" ", "\n ").split("\n")[1:]
            )
            assert llm.tokenizer.encode(prompt) == [ids[piece] for piece in pieces]
        assert llm.tokenizer.eos_id == ids[END]
        assert llm.generate("12*3=", SamplingParams(max_tokens=2)).text is not None


def test_a_recipe_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no task 'poetry'"):
        task_named("poetry")
    for wrong, message in (({"width": 40}, "width is 40"), ({"steps": 0}, "steps is 0")):
        with pytest.raises(ConfigError, match=message):
            RecordRecipe(task="search", **wrong)  # type: ignore[arg-type]
