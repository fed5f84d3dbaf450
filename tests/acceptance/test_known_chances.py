"""Samples against chances known exactly: one-token answers of a random model.

One pass of transformers gives the chance p of a right answer, so coverage is 1 - (1 - p)^k with
no estimate in it. A wrong temperature, a filter left on, repeated seeds or fakes would show.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.endpoints.local import LocalEndpoint
from capax.scaling.checkers import checker_named
from capax.scaling.coverage import dispersion
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import Outcome, SamplePlan, load, sample
from capax.scaling.tasks import Task
from tests.models import gguf_model, hf_model, hf_oracle

EXACT = checker_named("exact")
PROMPTS = [f"{word} {i}" for word in ("the rain", "hills", "roof") for i in range(4)]
N = 640


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(gguf_model("llama"), threads=1, n_sequences=8, parallel=64)


@pytest.fixture(scope="module")
def logits(llm: LLM) -> np.ndarray:
    """Of the token after each prompt, float64 [prompts, vocabulary], by transformers."""
    import torch

    oracle = hf_oracle(hf_model("llama"))
    with torch.no_grad():
        rows = [
            oracle(torch.tensor([llm.tokenizer.encode(prompt)])).logits[0, -1] for prompt in PROMPTS
        ]
    return np.stack([row.double().numpy() for row in rows])


def answers(llm: LLM) -> list[str]:
    """What each token of the vocabulary is as an answer."""
    return [
        llm.tokenizer.token_bytes(t).decode("utf-8", "replace").strip()
        for t in range(llm.config.vocab_size)
    ]


def chances(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits / temperature
    odds = np.exp(scaled - scaled.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def drawn(llm: LLM, path: Path, tasks: list[Task], temperature: float) -> Outcome:
    params = SamplingParams(max_tokens=1, temperature=temperature)
    plan = SamplePlan(N, params, choices=64, concurrency=1)

    async def run() -> None:
        with RunDirectory(path, plan.settings(tasks, "tiny")) as directory:
            async with LocalEndpoint(llm) as endpoint:
                await sample(endpoint, tasks, directory, plan)

    asyncio.run(run())
    llm.close()
    return load(path)


def z_values(outcome: Outcome, p: np.ndarray) -> np.ndarray:
    return np.asarray((outcome.counts.correct - N * p) / np.sqrt(N * p * (1 - p)))


@pytest.mark.parametrize("temperature", [0.6, 1.2])
def test_samples_have_the_models_chances(
    llm: LLM, logits: np.ndarray, tmp_path: Path, temperature: float
) -> None:
    texts = answers(llm)
    plain = [i for i, text in enumerate(texts) if text.isascii() and text.isalnum()]
    right = [plain[int(np.argsort(row[plain])[-2])] for row in logits]  # the second best of them
    tasks = [
        Task(f"p{i}", prompt, texts[token], EXACT)
        for i, (prompt, token) in enumerate(zip(PROMPTS, right, strict=True))
    ]
    same = np.array([[text == texts[token] for text in texts] for token in right])
    p = (chances(logits, temperature) * same).sum(1)
    assert ((N * p * (1 - p)) >= 5).all()  # the statistic needs that many expected
    outcome = drawn(llm, tmp_path / "run", tasks, temperature)
    z = z_values(outcome, p)
    assert (z**2).sum() < 32.9  # 99.9 % of chi squared with 12 degrees
    # Negative control: the other temperature's chances are far outside.
    other = (chances(logits, 1.8 - temperature) * same).sum(1)
    assert (z_values(outcome, other) ** 2).sum() > 100
    correct = np.stack([a.correct for a in outcome.answers]).astype(bool)
    assert abs(dispersion(correct, np.arange(N) // 64)) < 4
    assert abs(dispersion(correct, np.arange(N) % 64)) < 4


def test_what_cannot_come_never_comes(llm: LLM, tmp_path: Path) -> None:
    tasks = [Task("none", PROMPTS[0], "an answer of many tokens", EXACT)]
    assert drawn(llm, tmp_path / "run", tasks, 1.0).counts.correct.tolist() == [0]
