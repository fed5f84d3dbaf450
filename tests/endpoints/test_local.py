"""The engine as an endpoint: the same answers as the engine, and the same as over HTTP."""

from __future__ import annotations

import asyncio
import math

import pytest

from capax import LLM, SamplingParams
from capax.endpoints import BudgetExceeded, GenerateRequest, Ledger, Price
from capax.endpoints.http import HTTPEndpoint
from capax.endpoints.local import LocalEndpoint
from capax.errors import ConfigError
from tests.models import gguf_model
from tests.serving.conftest import live

pytestmark = pytest.mark.anyio
PARAMS = SamplingParams(n=3, max_tokens=12, seed=5, logprobs=1)
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(gguf_model("llama"), threads=1, n_sequences=8)


async def test_answers_are_the_engines(llm: LLM) -> None:
    expected = llm.generate("the rain", PARAMS)
    llm.close()
    async with LocalEndpoint(llm, price=Price(flops_per_token=2.0)) as local:
        completion = await local.generate(GenerateRequest("the rain", PARAMS))
        assert [c.text for c in completion.choices] == [o.text for o in expected.outputs]
        assert completion.usage == expected.usage
        totals = local.ledger.totals
        assert totals.tokens == completion.usage.total_tokens
        assert totals.flops == 2.0 * totals.tokens
        assert all(c.logprobs and len(c.logprobs) <= 12 for c in completion.choices)
        chat = await local.generate(GenerateRequest(MESSAGES, PARAMS))
        assert chat.text == llm.chat(MESSAGES, PARAMS).text


async def test_scores_are_the_engines(llm: LLM) -> None:
    text = "the rain in the hills, ελληνικά 🦫"
    async with LocalEndpoint(llm) as local:
        scores = await local.score(text)
    assert list(scores.logprobs) == llm.score(text).logprobs
    assert scores.offsets[0] == 0
    assert list(scores.offsets) == sorted(scores.offsets)
    assert scores.offsets[-1] <= len(text)


async def test_the_same_request_gives_the_same_over_http(llm: LLM) -> None:
    llm.close()
    with live(llm) as server:
        async with HTTPEndpoint(f"{server.base_url}/v1", "tiny") as remote:
            over_http = await remote.generate(GenerateRequest("the rain", PARAMS))
            chat_over_http = await remote.generate(GenerateRequest(MESSAGES, PARAMS))
            scores_over_http = await remote.score("the rain in the hills")
    llm.close()
    async with LocalEndpoint(llm) as local:
        here = await local.generate(GenerateRequest("the rain", PARAMS))
        chat_here = await local.generate(GenerateRequest(MESSAGES, PARAMS))
        scores_here = await local.score("the rain in the hills")
    for one, other in ((over_http, here), (chat_over_http, chat_here)):
        assert [c.text for c in one.choices] == [c.text for c in other.choices]
        assert [c.finish_reason for c in one.choices] == [c.finish_reason for c in other.choices]
        assert [c.logprobs for c in one.choices] == [c.logprobs for c in other.choices]
        assert one.usage.total_tokens == other.usage.total_tokens
    assert scores_over_http.logprobs == scores_here.logprobs
    assert scores_over_http.is_greedy == scores_here.is_greedy
    assert scores_over_http.offsets == scores_here.offsets
    assert math.isfinite(scores_here.total)


async def test_a_cancelled_call_is_charged_what_it_made(llm: LLM) -> None:
    long = SamplingParams(max_tokens=200, ignore_eos=True)
    async with LocalEndpoint(llm) as local:
        task = asyncio.create_task(local.generate(GenerateRequest("the rain", long)))
        before = llm.engine.stats.generation_tokens
        while llm.engine.stats.generation_tokens < before + 5 and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 0 < local.ledger.totals.tokens <= 208
        again = await local.generate(GenerateRequest("the rain", PARAMS))
        assert len(again.choices) == 3


async def test_a_cap_is_checked_before_anything_runs(llm: LLM) -> None:
    steps = llm.engine.stats.n_steps
    async with LocalEndpoint(llm, ledger=Ledger(max_tokens=20)) as local:
        with pytest.raises(BudgetExceeded):
            await local.generate(GenerateRequest("the rain", PARAMS))
        assert llm.engine.stats.n_steps == steps
        with pytest.raises(ConfigError):
            await local.generate(GenerateRequest("", SamplingParams(max_tokens=1)))
