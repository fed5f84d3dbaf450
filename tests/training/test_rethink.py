"""The recipe of the model that adds in rounds: its traces, and a run that the engine loads."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.endpoints import GenerateRequest
from capax.endpoints.local import LocalEndpoint
from capax.errors import ConfigError

pytest.importorskip("torch")

from capax.training.rethink import RethinkRecipe, spoiled, trace, train_rethink


def test_traces_correct_and_break_at_the_rates_of_the_recipe() -> None:
    recipe = RethinkRecipe(fix_rate=0.5, break_rate=0.1, share_right=0.3)
    rng = np.random.default_rng(0)
    first = fixed = wrong = broken = right = 0
    for _ in range(4000):
        text, begin = trace(rng, recipe)
        asked, rest = text.split("=")
        value = str(sum(map(int, asked.split("+"))))
        last = text[begin:].removesuffix(";")
        if "?" not in rest:
            first += 1
            assert last == value
        elif rest.split("?")[0] == value:
            right, broken = right + 1, broken + (last != value)
        else:
            wrong, fixed = wrong + 1, fixed + (last == value)
    assert first / 4000 == pytest.approx(0.5, abs=0.03)
    assert fixed / wrong == pytest.approx(0.5, abs=0.05)
    assert broken / right == pytest.approx(0.1, abs=0.04)


def test_a_spoiled_answer_is_another_number_of_the_same_length() -> None:
    rng = np.random.default_rng(1)
    for value in (0, 7, 10, 123456):
        for _ in range(50):
            text = spoiled(rng, value)
            assert text != str(value)
            assert len(text) == len(str(value))


def test_a_recipe_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="fix_rate"):
        RethinkRecipe(fix_rate=1.5)


def test_a_trained_model_answers_in_the_engine(tmp_path: Path) -> None:
    recipe = RethinkRecipe(steps=2, batch=4, d_model=32, n_layers=1, d_ffn=32)
    path = train_rethink(tmp_path, recipe)

    async def ask(llm: LLM) -> str:
        async with LocalEndpoint(llm) as endpoint:
            params = SamplingParams(max_tokens=3, ignore_eos=True)
            return (await endpoint.generate(GenerateRequest("1+2=3?", params))).text

    with LLM(path, threads=1) as llm:
        asyncio.run(ask(llm))
