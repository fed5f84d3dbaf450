"""What one request may learn of another: nothing, whoever asks, in whatever company."""

from __future__ import annotations

import asyncio
import string
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capax import LLM
from tests.serving.conftest import client_of, live, running_client

pytestmark = pytest.mark.anyio

FIRST, SECOND = "key-of-the-first", "key-of-the-second"


def body(prompt: str, **more: Any) -> dict[str, Any]:
    sampled = {"max_tokens": 12, "temperature": 1.0, "seed": 7, "ignore_eos": True}
    return {"prompt": prompt, **sampled, **more}


async def ask(client: httpx2.AsyncClient, prompt: str, key: str = "", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = await client.post("/v1/completions", json=body(prompt, **more), headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def cached(answer: Any) -> int:
    n: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return n


async def test_the_first_probe_of_a_foreign_prompt_is_a_miss(tiny_llm: LLM) -> None:
    """Each prompt is asked by one tenant, then by the other: never a hit; then again: a hit."""
    async with client_of(tiny_llm, api_keys=(FIRST, SECOND)) as client:
        for word in ("alpha ", "beta ", "gamma ", "delta "):
            prompt = word * 60
            await ask(client, prompt, FIRST)
            assert cached(await ask(client, prompt, SECOND)) == 0
            assert cached(await ask(client, prompt, SECOND)) > 0
            assert cached(await ask(client, prompt, FIRST)) > 0


async def test_a_salt_separates_within_a_tenant(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm) as client:
        prompt = "salted words " * 30
        await ask(client, prompt, cache_salt="a")
        assert cached(await ask(client, prompt, cache_salt="b")) == 0
        assert cached(await ask(client, prompt)) == 0
        assert cached(await ask(client, prompt, cache_salt="a")) > 0


async def test_every_request_gets_its_own_canary_and_its_own_text(tiny_llm: LLM) -> None:
    """Forty at once, echoing: each text is what it is alone, and names no other's canary."""
    canaries = [f"canary-{a}{b}-" for a in string.ascii_lowercase[:8] for b in "vwxyz"]
    async with running_client(tiny_llm) as (client, server):
        alone = [await ask(client, canary * 3, echo=True) for canary in canaries]
        server.llm.engine.forget()
        together = await asyncio.gather(*(ask(client, c * 3, echo=True) for c in canaries))
        server.llm.engine.check_integrity()
    for canary, one, all_at_once in zip(canaries, alone, together, strict=True):
        text = all_at_once["choices"][0]["text"]
        assert text == one["choices"][0]["text"]
        assert canary in text
        assert not [other for other in canaries if other != canary and other in text]


@pytest.fixture(scope="module")
def cramped_llm(tiny_model: Path) -> LLM:
    """A model whose cache holds one whole context: requests that grow must take turns."""
    return LLM(tiny_model, threads=1, n_sequences=1)


def test_memory_that_runs_out_in_mid_generation_costs_time_and_not_text(cramped_llm: LLM) -> None:
    prompts = ["a b c d e", "f g h i j", "k l m n o", "p q r s t"]
    with live(cramped_llm) as server:

        def text(client: httpx2.Client, prompt: str) -> str:
            response = client.post("/v1/completions", json=body(prompt, max_tokens=400))
            assert response.status_code == 200, response.text
            answer: str = response.json()["choices"][0]["text"]
            return answer

        async def all_at_once() -> list[str]:
            return await asyncio.gather(
                *(asyncio.to_thread(text, client, prompt) for prompt in prompts)
            )

        with httpx2.Client(base_url=server.base_url, timeout=60.0) as client:
            alone = [text(client, prompt) for prompt in prompts]
            together = asyncio.run(all_at_once())
        assert together == alone
        stats = server.server.runner.stats()
        assert stats.n_preemptions > 0
        server.wait_idle()
        server.server.llm.engine.check_integrity()


def test_a_request_that_can_never_fit_is_told_so_at_once(cramped_llm: LLM) -> None:
    with live(cramped_llm) as server:
        response = httpx2.post(
            f"{server.base_url}/v1/completions",
            json=body("a", n=8, max_tokens=400),
            timeout=20.0,
        )
    assert response.status_code == 400
    assert "KV pages" in response.json()["error"]["message"]
