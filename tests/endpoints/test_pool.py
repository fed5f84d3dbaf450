"""A pool of two Ray workers: one endpoint, one ledger, whoever answers and whoever dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from capax import LLM, SamplingParams
from capax.endpoints import BudgetExceeded, Entry, GenerateRequest, Ledger
from capax.endpoints.pool import EngineWorker, RayPool, ServerWorker
from capax.errors import ConfigError, EndpointError
from tests.models import gguf_model
from tests.serving.conftest import live

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def model() -> Path:
    return gguf_model("llama")


@pytest.fixture(scope="module")
async def pool(model: Path) -> AsyncIterator[RayPool]:
    async with RayPool([EngineWorker(str(model), n_sequences=8)] * 2) as pool:
        yield pool


def params(seed: int, **choices: object) -> SamplingParams:
    return SamplingParams(max_tokens=12, seed=seed, **choices)  # type: ignore[arg-type]


async def test_answers_are_the_engines_whoever_gives_them(pool: RayPool, model: Path) -> None:
    requests = [GenerateRequest("the rain", params(seed, n=2)) for seed in range(12)]
    found = await asyncio.gather(*map(pool.generate, requests))
    with LLM(model, threads=1, n_sequences=8) as llm:
        for request, completion in zip(requests, found, strict=True):
            expected = llm.generate("the rain", request.params)
            assert [c.text for c in completion.choices] == [o.text for o in expected.outputs]
            assert completion.usage.completion_tokens == expected.usage.completion_tokens
        scores = await pool.score("the rain in the hills")
        assert list(scores.logprobs) == llm.score("the rain in the hills").logprobs
    assert len(pool.pids) == 2
    assert pool.max_choices >= 8


async def test_no_race_exceeds_the_cap(model: Path) -> None:
    ledger = Ledger(max_tokens=200)
    async with RayPool([EngineWorker(str(model))] * 2, ledger=ledger) as pool:
        requests = [GenerateRequest("the rain", params(seed)) for seed in range(40)]
        found = await asyncio.gather(*map(pool.generate, requests), return_exceptions=True)
        refused = [x for x in found if isinstance(x, BudgetExceeded)]
        assert 0 < len(refused) < 40
        assert all(isinstance(x, BudgetExceeded) for x in found if isinstance(x, BaseException))
        assert ledger.totals.tokens <= 200
        with pytest.raises(ConfigError):
            await pool.generate(GenerateRequest("x", SamplingParams(max_tokens=1, n=10**4)))
        with pytest.raises(ConfigError, match="max_tokens"):
            await pool.generate(GenerateRequest("x", SamplingParams(max_tokens=None)))


@pytest.mark.slow
async def test_a_lost_workers_calls_go_to_the_other_and_are_paid_for(model: Path) -> None:
    entries: list[Entry] = []
    ledger = Ledger(max_tokens=10_000, on_entry=entries.append)
    long = SamplingParams(max_tokens=200, ignore_eos=True, seed=1)
    async with RayPool([EngineWorker(str(model))] * 2, ledger=ledger) as pool:
        expected = (await pool.generate(GenerateRequest("the rain", long))).text
        calls = [
            asyncio.create_task(pool.generate(GenerateRequest("the rain", long))) for _ in range(16)
        ]
        while sum(m.n_choices > 0 for m in pool._members) < 2:
            await asyncio.sleep(0.01)
        os.kill(pool.pids[0], signal.SIGKILL)
        assert {c.text for c in await asyncio.gather(*calls)} == {expected}
        lost = [e for e in entries if e.status == "unknown"]
        assert lost  # killed at work
        assert all(e.completion_tokens == 200 for e in lost)
        assert len(entries) == 17 + len(lost)
        assert len(pool.pids) == 1
        os.kill(pool.pids[0], signal.SIGKILL)
        with pytest.raises(EndpointError, match="none of the pool's 2 workers is left"):
            await pool.generate(GenerateRequest("the rain", long))
        assert ledger.totals.tokens <= 10_000


async def test_workers_that_cannot_start_say_why(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"missing\.gguf"):
        async with RayPool([EngineWorker(str(tmp_path / "missing.gguf"))]):
            pass
    with pytest.raises(ConfigError, match="1 to 256 workers"):
        RayPool([])


@pytest.mark.slow
async def test_servers_can_be_workers(pool: RayPool, model: Path) -> None:
    request = GenerateRequest([{"role": "user", "content": "hello"}], params(3))
    expected = await pool.generate(request)
    with live(LLM(model, threads=1)) as server:
        worker = ServerWorker(f"{server.base_url}/v1", "tiny", api_key="secret-key")
        assert "secret-key" not in repr(worker)
        async with RayPool([worker] * 2) as remote:
            assert (await remote.generate(request)).text == expected.text
