"""Steps one LLM's engine in a thread of its own and hands its news to an asyncio loop.

One wake-up of the loop per step for all streams together, never one per token. A stream that
is left, or closed, is cancelled at the next step.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from capax.decoding.params import SamplingParams
from capax.engine.llm import LLM
from capax.engine.outputs import StreamPiece
from capax.engine.sequence import Request
from capax.errors import CapaxError, QueueFullError

IDLE_S = 0.5


@dataclass(frozen=True, slots=True)
class EngineStats:
    """One snapshot of the engine. Pages in use are referenced by running sequences."""

    n_running: int
    n_waiting: int
    kv_pages_used: int
    kv_pages_cached: int
    kv_pages_total: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    n_preemptions: int
    prompt_tokens: int
    generation_tokens: int
    n_steps: int
    last_step_s: float


class Runner:
    """Runs requests of one event loop. Enter it as a context to start the thread."""

    def __init__(self, llm: LLM, *, max_queue: int) -> None:
        self._llm = llm
        self._max_queue = max_queue
        self._streams: set[_Stream] = set()
        self._error: BaseException | None = None
        self._is_stopping = False
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capax-engine", daemon=True)
        self._n_steps = 0
        self._last_step_s = 0.0
        self._n_prompt = 0
        self._n_generated = 0
        self._n_hits = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in list(self._streams):
            await stream.aclose()
        self._is_stopping = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def error(self) -> BaseException | None:
        """What ended the thread, if something did."""
        return self._error

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        constraint: Callable[[], Any] | None = None,
    ) -> AsyncIterator[list[StreamPiece]]:
        """Submit a request now and return its news, all since the last fetch in one list.

        Raises ConfigError, CapacityError and QueueFullError at once.
        """
        if len(self._streams) >= self._max_queue:
            raise QueueFullError(
                f"{len(self._streams)} requests are running or waiting, the limit; ask again later"
            )
        request = self._llm._request(list(prompt), params)
        self._llm._engine.submit(request)
        stream = _Stream(self, request)
        self._streams.add(stream)
        self._work.set()
        return stream

    def stats(self) -> EngineStats:
        """Return one consistent snapshot; callable from any thread."""
        pool = self._llm._pool.native
        n_running = self._llm._engine.n_unfinished
        return EngineStats(
            n_running=n_running,
            n_waiting=0,
            kv_pages_used=pool.n_in_use if n_running else 0,
            kv_pages_cached=0 if n_running else pool.n_in_use,
            kv_pages_total=pool.capacity,
            prefix_query_tokens=self._n_prompt,
            prefix_hit_tokens=self._n_hits,
            n_preemptions=0,
            prompt_tokens=self._n_prompt,
            generation_tokens=self._n_generated,
            n_steps=self._n_steps,
            last_step_s=self._last_step_s,
        )

    def _run(self) -> None:
        engine = self._llm._engine
        try:
            while not self._is_stopping:
                if engine.n_unfinished:
                    began = time.perf_counter()
                    engine.step()
                    self._last_step_s = time.perf_counter() - began
                    self._n_steps += 1
                    self._loop.call_soon_threadsafe(self._tell)
                else:
                    self._work.wait(IDLE_S)
                    self._work.clear()
        except BaseException as error:  # noqa: BLE001  # a border: every stream raises it
            self._error = error
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for stream in self._streams:
            stream.has_news.set()

    def _fetch(self, request: Request) -> list[StreamPiece]:
        pieces = []
        while request.events:
            piece = self._llm._piece(request, request.events.popleft())
            pieces.append(piece)
            if piece.output is not None:
                usage = piece.output.usage
                self._n_prompt += usage.prompt_tokens
                self._n_generated += usage.completion_tokens
                self._n_hits += usage.cached_tokens
        return pieces

    def _leave(self, stream: _Stream) -> None:
        self._streams.discard(stream)

    def _cancel(self, request: Request) -> None:
        self._llm._engine.cancel(request)


class _Stream:
    """The news of one request."""

    def __init__(self, runner: Runner, request: Request) -> None:
        self._runner = runner
        self._request = request
        self._is_over = False
        self.has_news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[StreamPiece]:
        if self._is_over:
            raise StopAsyncIteration
        while not self._request.events:
            if self._runner.error is not None:
                self._end()
                raise CapaxError("the engine has stopped; restart the server")
            self._request.raise_error()
            self.has_news.clear()
            await self.has_news.wait()
        pieces = self._runner._fetch(self._request)
        if pieces[-1].output is not None:
            self._end()
        return pieces

    async def aclose(self) -> None:
        """End the request at the next step, if it has not ended."""
        if not self._is_over:
            self._end()
            self._runner._cancel(self._request)

    def _end(self) -> None:
        self._is_over = True
        self._runner._leave(self)
