"""Many samples of one prompt: computed once, kept once (large-language-monkeys, 8).

How much sooner they are done is `benchmarks.sampling`; no test asserts a time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capax import LLM, SamplingParams
from capax.endpoints import GenerateRequest
from capax.endpoints.local import LocalEndpoint
from capax.kv import PAGE_TOKENS
from tests.models import gguf_model

PROMPT, ANSWER, N = 512, 32, 32


def prompt_of(llm: LLM, n_tokens: int) -> str:
    """Return a text of exactly so many tokens."""
    words = ("the", "rain", "falls", "on", "hills", "and", "roofs", "while", "we", "count", "it")
    rng = np.random.default_rng(0)
    text = ""
    while len(llm.tokenizer.encode(text)) < n_tokens + 16:
        text += " " + str(rng.choice(words))
    for end in range(len(text), 0, -1):
        if len(llm.tokenizer.encode(text[:end])) == n_tokens:
            return text[:end]
    raise AssertionError("no text has that length")


def sampled(llm: LLM, n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """Return prompt tokens computed, sampled tokens and the most pages held, for n answers."""
    params = SamplingParams(n=n, max_tokens=ANSWER, temperature=0.8, ignore_eos=True, seed=1)
    text = prompt_of(llm, PROMPT)
    before = llm.engine.stats
    base = (before.prefix_query_tokens - before.prefix_hit_tokens, before.generation_tokens)
    pages = []
    step = llm.engine.step
    store = llm.engine._store  # its counts are of now, those of `stats` may be older

    def watched() -> Any:
        found = step()
        pages.append(store.capacity - store.n_free)
        return found

    async def run() -> None:
        async with LocalEndpoint(llm) as endpoint:
            assert len((await endpoint.generate(GenerateRequest(text, params))).choices) == n

    monkeypatch.setattr(llm.engine, "step", watched)
    asyncio.run(run())
    stats = llm.engine.stats
    computed = stats.prefix_query_tokens - stats.prefix_hit_tokens - base[0]
    return computed, stats.generation_tokens - base[1], max(pages)


def check(model: Path | str, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM(model, threads=1, n_sequences=4, parallel=N, ctx_size=1024) as llm:
        computed, new, pages = sampled(llm, N, monkeypatch)
    assert computed == PROMPT  # not 32 times as many
    assert new == N * ANSWER
    shared, own = PROMPT // PAGE_TOKENS, -(-ANSWER // PAGE_TOKENS)
    assert shared < pages <= 1.1 * (shared + N * own)
    unshared = N * -(-(PROMPT + ANSWER) // PAGE_TOKENS)
    assert pages < unshared / 5


def test_the_prompt_is_computed_and_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check(gguf_model("llama", max_position_embeddings=2048), monkeypatch)


@pytest.mark.slow
def test_smollm2_too(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(smollm2, monkeypatch)
