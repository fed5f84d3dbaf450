"""Steps one LLM's engine in a thread of its own and hands its news to an asyncio loop.

One wake-up of the loop per step for all streams together, never one per token. A stream that
is left, or closed, is cancelled at the next step. A stream whose reader is slow gets no more tokens
until some are fetched, and is ended when that takes too long; others are not held up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from capax.decoding.constraint import ConstraintFactory
from capax.decoding.params import SamplingParams
from capax.engine.engine import EngineStats
from capax.engine.llm import LLM
from capax.engine.outputs import StreamPiece
from capax.engine.sequence import Request
from capax.errors import CapaxError, QueueFullError

__all__ = ["EngineStats", "PromptProgress", "Runner"]

MAX_PIECES = 64  # of a request that nobody has fetched; then it is paused
FETCH_TIMEOUT_S = 30.0  # then it is ended
WATCH_S = 1.0
IDLE_S = 0.5
PAUSED_S = 0.01


class PromptProgress(NamedTuple):
    """Tokens of a prompt: all, those behind it, and those of them that were reused."""

    total: int
    processed: int
    cached: int


class Runner:
    """Runs requests of one event loop. Enter it as a context to start the thread.

    `max_queue`: requests that may wait; more are refused.
    """

    def __init__(self, llm: LLM, *, max_queue: int) -> None:
        self._llm = llm
        self._engine = llm.engine
        self._max_queue = max_queue
        self._streams: dict[int, Stream] = {}  # by the id of the request
        self._error: BaseException | None = None
        self._is_stopping = False
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capax-engine", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._watcher = self._loop.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watcher.cancel()
        for stream in list(self._streams.values()):
            await stream.aclose()
        self._is_stopping = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    @property
    def error(self) -> BaseException | None:
        """What ended the thread, if something did."""
        return self._error

    def stats(self) -> EngineStats:
        """Return the engine's latest snapshot; never waits."""
        return self._engine.stats

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        tenant: str = "",
        priority: int = 0,
        constraint: ConstraintFactory | None = None,
    ) -> Stream:
        """Submit a request now and return its news, all since the last fetch in one list.

        `tenant`: whose kept pages it may use; tenants take turns. A lower `priority` comes first.
        `constraint`: makes what bounds the tokens of one choice. The last piece of the request
        carries its output. Raises ConfigError, CapacityError and QueueFullError at once.
        """
        n_waiting = self._engine.n_waiting
        if n_waiting >= self._max_queue:
            raise QueueFullError(
                f"{n_waiting} requests are waiting and at most {self._max_queue} may; "
                "ask again later"
            )
        request = self._llm.request(prompt, params)
        request.tenant = tenant
        request.priority = priority
        request.constraint = constraint or request.constraint
        request.max_events = MAX_PIECES
        self._engine.submit(request)
        stream = self._streams[id(request)] = Stream(self, request)
        self._work.set()
        return stream

    # --- the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                if not self._engine.has_work:
                    self._work.wait(IDLE_S)
                    self._work.clear()
                    continue
                news = self._engine.step()
                if news:
                    self._loop.call_soon_threadsafe(self._tell, news)
                else:
                    self._work.wait(PAUSED_S)
                    self._work.clear()
        except BaseException as error:  # noqa: BLE001  # a border: every stream raises it
            self._error = error
            self._loop.call_soon_threadsafe(self._tell_all)

    # --- the loop -------------------------------------------------------------------------

    def _tell(self, requests: list[Request]) -> None:
        for request in requests:
            stream = self._streams.get(id(request))
            if stream is not None:
                stream.has_news.set()

    def _tell_all(self) -> None:
        for stream in self._streams.values():
            stream.has_news.set()

    async def _watch(self) -> None:
        """End streams that nobody reads."""
        while True:
            await asyncio.sleep(WATCH_S)
            for stream in list(self._streams.values()):
                stream.check_reader()

    def _fetch(self, request: Request) -> list[StreamPiece]:
        was_paused = request.is_paused
        pieces = []
        while request.events:
            pieces.append(self._llm.piece(request, request.events.popleft()))
        if was_paused:
            self._work.set()
        return pieces

    def _leave(self, request: Request) -> None:
        self._streams.pop(id(request), None)

    def _cancel(self, request: Request) -> None:
        self._engine.cancel(request)
        self._work.set()


class Stream:
    """The news of one request."""

    def __init__(self, runner: Runner, request: Request) -> None:
        self._runner = runner
        self._request = request
        self._is_over = False
        self._is_left = False  # nobody fetched for too long
        self._fetched_s = time.monotonic()
        self.has_news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[StreamPiece]:
        if self._is_over:
            raise StopAsyncIteration
        while not self._request.events:
            self._raise_errors()
            self.has_news.clear()
            await self.has_news.wait()
        if self._is_left:
            self._raise_errors()
        self._fetched_s = time.monotonic()
        pieces = self._runner._fetch(self._request)
        if pieces[-1].output is not None:
            self._end()
        return pieces

    @property
    def prompt_progress(self) -> PromptProgress:
        """How far the prompt is; a preempted request begins again."""
        request, total = self._request, len(self._request.prompt_ids)
        n_done = min(request.sequences[0].cache.n_tokens, total) if request.sequences else 0
        return PromptProgress(total, max(n_done, min(request.n_cached, total)), request.n_cached)

    async def aclose(self) -> None:
        """End the request at the next step, if it has not ended."""
        if not self._is_over:
            self._end()
            self._runner._cancel(self._request)

    def check_reader(self) -> None:
        """End the request if it has been paused for its reader too long."""
        if self._request.is_paused and time.monotonic() - self._fetched_s > FETCH_TIMEOUT_S:
            self._is_left = True
            self._runner._cancel(self._request)
            self.has_news.set()

    def _raise_errors(self) -> None:
        error: CapaxError | None = None
        if self._runner.error is not None:
            error = CapaxError("the engine has stopped; restart the server")
        elif self._is_left:
            error = CapaxError(f"nobody has read this answer for {FETCH_TIMEOUT_S:.0f} s")
        try:
            if error is not None:
                raise error
            self._request.raise_error()
        except CapaxError:
            self._end()
            raise

    def _end(self) -> None:
        self._is_over = True
        self._runner._leave(self._request)
