"""The runner on a loop of its own: streams, refusals, readers that leave or are slow, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from capax import LLM, SamplingParams
from capax.engine.outputs import StreamPiece
from capax.engine.runner import MAX_PIECES, Runner
from capax.errors import CapaxError, ConfigError, QueueFullError
from tests.models import gguf_model

LONG = SamplingParams(max_tokens=150, ignore_eos=True, seed=3)


@pytest.fixture(scope="module")
def loaded() -> LLM:
    return LLM(gguf_model("llama", encoding="Q8_0"), threads=1, ctx_size=256, n_sequences=4)


@pytest.fixture
def llm(loaded: LLM) -> Iterator[LLM]:
    yield loaded
    loaded.engine.check_integrity()
    loaded.close()
    assert loaded._store.native.n_in_use == 0


async def ids_of(stream: AsyncIterator[list[StreamPiece]]) -> list[int]:
    return [token async for pieces in stream for piece in pieces for token in piece.token_ids]


async def until(claim: Any) -> None:
    for _ in range(3000):
        if claim():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come true")


def test_streams_together_say_what_each_says_alone(llm: LLM) -> None:
    prompts = [[5, 6], [7] * 90, [5] * 70]
    expected = [llm.generate(p, LONG) for p in prompts]

    async def main() -> list[list[int]]:
        async with Runner(llm, max_queue=8) as runner:
            return await asyncio.gather(*(ids_of(runner.stream(p, LONG)) for p in prompts))

    assert asyncio.run(main()) == [answer.token_ids for answer in expected]


def test_a_request_is_refused_when_it_is_made(llm: LLM) -> None:
    async def main() -> None:
        async with Runner(llm, max_queue=0) as runner:
            with pytest.raises(QueueFullError, match="0 requests are waiting and at most 0 may"):
                runner.stream([5], LONG)
        async with Runner(llm, max_queue=8) as runner:
            with pytest.raises(ConfigError, match="prompt is empty"):
                runner.stream([], LONG)
            assert runner.stats().n_running == 0

    asyncio.run(main())


def test_a_stream_that_is_closed_gives_its_memory_back(llm: LLM) -> None:
    async def main() -> None:
        async with Runner(llm, max_queue=8) as runner:
            stream: Any = runner.stream([5] * 100, LONG)
            assert await anext(stream)
            await stream.aclose()
            await until(lambda: llm.engine.n_unfinished == 0)
            assert runner.stats().kv_pages_used == 0

    asyncio.run(main())


def test_leaving_the_runner_ends_what_is_running(llm: LLM) -> None:
    async def main() -> None:
        async with Runner(llm, max_queue=8) as runner:
            streams = [runner.stream([5, i], LONG) for i in range(6)]
            await anext(streams[0])
        assert llm.engine.n_unfinished == 0

    asyncio.run(main())


def test_a_slow_reader_is_paused_and_misses_nothing(llm: LLM) -> None:
    expected = llm.generate([5, 6], LONG).token_ids

    async def main() -> list[int]:
        async with Runner(llm, max_queue=8) as runner:
            slow = runner.stream([5, 6], LONG)
            request = slow._request  # type: ignore[attr-defined]
            await until(lambda: request.is_paused)
            quick = await ids_of(runner.stream([7, 8], LONG))
            assert len(quick) == LONG.max_tokens
            assert len(request.events) == MAX_PIECES
            return await ids_of(slow)

    assert asyncio.run(main()) == expected


def test_when_the_thread_dies_every_stream_says_so(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("none")

    async def main() -> None:
        async with Runner(llm, max_queue=8) as runner:
            streams = [runner.stream([5, i], LONG) for i in (1, 2)]
            for stream in streams:
                await anext(stream)
            with monkeypatch.context() as patched:
                patched.setattr(llm._model, "sample", fail)
                for stream in streams:
                    with pytest.raises(CapaxError):
                        await ids_of(stream)
            assert isinstance(runner.error, MemoryError)
        assert llm.engine.n_unfinished == 0

    asyncio.run(main())
