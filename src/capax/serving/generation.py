"""One HTTP request on its way through the engine: its prompts, its choices, what it used.

A route turns its body into `Generation`s, one for each prompt, and `submit`s them. That raises
before a byte is sent. What comes back are lists of news: all pieces that were ready together,
so that they leave in one write.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from starlette.requests import Request

import capax
from capax.decoding.params import SamplingParams
from capax.engine.outputs import RequestOutput, StreamPiece
from capax.engine.runner import PromptProgress
from capax.errors import CapaxError
from capax.kv import PAGE_TOKENS
from capax.serving.errors import ApiError, invalid, not_ready
from capax.serving.fields import SamplingFields
from capax.serving.state import Server, server_of

PROGRESS_S = 0.25  # between two reports of how far a prompt is


@dataclass(frozen=True, slots=True)
class Generation:
    """One prompt with its settings. `cache_salt` names a part of the tenant's prefix cache."""

    prompt_ids: list[int]
    params: SamplingParams
    cache_salt: str | None = None
    priority: int = 0
    constraint: Callable[[], Any] | None = None


# --- from fields to parameters ---------------------------------------------------------------


def sampling_params(
    server: Server, fields: SamplingFields, *, max_tokens: int | None, **more: Any
) -> SamplingParams:
    """Return what the fields ask of the sampler; `more` are arguments that go before them.

    What neither sets is as the model's authors recommend, else as in the OpenAI API.
    Without a seed each request draws its own, so that asking twice gives two answers. Raises
    ConfigError for values that contradict each other or name unknown tokens.
    """
    values = server.sampling_defaults | fields.sampling()
    values |= {name: v for name, v in more.items() if v is not None}
    values.setdefault("seed", secrets.randbits(63))
    params = SamplingParams(max_tokens=max_tokens, **values)
    params.check_vocabulary(server.llm.config.vocab_size)
    most = server.llm.plan.logit_rows
    if params.n > most:
        name = "n" if params.n == fields.n else "best_of"
        raise invalid(
            f"{name} is {params.n} but at most {most} choices run at a time; lower it or start the "
            "server with a larger --parallel",
            param=name,
        )
    return params


def tokens_wanted(name: str, value: int | None) -> int | None:
    """Return the most tokens to generate; None for as many as fit, which may be written -1."""
    if value == 0:
        raise invalid(f"{name} is 0 but must be at least 1, or -1 for no limit", param=name)
    return None if value in (None, -1) else value


def cache_salt(fields: SamplingFields) -> str | None:
    """Return the part of the prefix cache to use; with `cache_prompt: false` one of its own."""
    return secrets.token_hex(16) if fields.cache_prompt is False else fields.cache_salt


# --- through the engine ------------------------------------------------------------------------


class Submitted:
    """Generations that the engine has, until `aclose` takes them back."""

    def __init__(self, streams: list[AsyncIterator[list[StreamPiece]]]) -> None:
        self._streams = streams

    @property
    def only(self) -> AsyncIterator[list[StreamPiece]]:
        """The news of the only prompt: all that is ready together in one list."""
        [stream] = self._streams
        return stream

    async def news(self) -> AsyncGenerator[list[tuple[int, list[StreamPiece]]], None]:
        """Yield (prompt, pieces) for all prompts that have news together."""
        waiting = {self._fetch(index): index for index in range(len(self._streams))}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                batch: list[tuple[int, list[StreamPiece]]] = []
                for task in sorted(done, key=lambda task: waiting[task]):
                    index = waiting.pop(task)
                    pieces = task.result()
                    if pieces is not None:
                        batch.append((index, pieces))
                        waiting[self._fetch(index)] = index
                if batch:
                    yield batch
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _fetch(self, index: int) -> asyncio.Task[list[StreamPiece] | None]:
        return asyncio.ensure_future(_next(self._streams[index]))

    async def outputs(self) -> list[RequestOutput]:
        """Wait for all of it; one output for each prompt, in order."""
        outputs: dict[int, RequestOutput | None] = {}
        async with aclosing(self.news()) as news:
            async for batch in news:
                for prompt, pieces in batch:
                    for piece in pieces:
                        check_piece(piece)
                    outputs[prompt] = pieces[-1].output or outputs.get(prompt)
        return [finished(outputs.get(i)) for i in range(len(self._streams))]

    async def aclose(self) -> None:
        """End what is still running."""
        for stream in self._streams:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()


class Progress:
    """How far the prompt of a stream is, in llama-server's terms, until the answer begins."""

    def __init__(self, stream: AsyncIterator[list[StreamPiece]], n_prompt: int) -> None:
        self._stream = stream
        self._n_prompt = n_prompt
        self._started_s = time.perf_counter()
        self.is_over = False

    async def news(self) -> AsyncGenerator[list[StreamPiece], None]:
        """Yield the stream's news, and before them empty lists at once and every PROGRESS_S."""
        first = asyncio.ensure_future(_next(self._stream))
        try:
            while not first.done():
                yield []
                await asyncio.wait({first}, timeout=PROGRESS_S)
            self.is_over = True
            yield []
            if (pieces := await first) is not None:
                yield pieces
        finally:
            first.cancel()
        async for pieces in self._stream:
            yield pieces

    def shown(self) -> dict[str, Any]:
        """Return `prompt_progress`."""
        known: PromptProgress | None = getattr(self._stream, "prompt_progress", None)
        total, processed, cached = known or PromptProgress(self._n_prompt, 0, 0)
        return {
            "total": total,
            "cache": cached,
            "processed": total if self.is_over else processed,
            "time_ms": 1e3 * (time.perf_counter() - self._started_s),
        }


async def _next(stream: AsyncIterator[list[StreamPiece]]) -> list[StreamPiece] | None:
    return await anext(stream, None)


async def submit(request: Request, generations: Sequence[Generation]) -> Submitted:
    """Hand the generations to the engine, all or none.

    Raises ConfigError, CapacityError and QueueFullError as `Runner.stream`.
    """
    server = server_of(request)
    streams: list[AsyncIterator[list[StreamPiece]]] = []
    try:
        for g in generations:
            streams.append(
                server.stream(
                    request,
                    g.prompt_ids,
                    g.params,
                    priority=g.priority,
                    cache_salt=g.cache_salt,
                    constraint=g.constraint,
                )
            )
    except BaseException:
        await Submitted(streams).aclose()
        raise
    return Submitted(streams)


class Closable(Protocol):
    """What has to be ended."""

    async def aclose(self) -> None: ...


class Chunks:
    """The bytes of a response that streams. Closing it takes the generations back, also when
    nobody has begun to read."""

    def __init__(self, submitted: Closable, encoded: AsyncGenerator[bytes, None]) -> None:
        self._submitted = submitted
        self._encoded = encoded

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._encoded

    async def aclose(self) -> None:
        await self._encoded.aclose()
        await self._submitted.aclose()


def finished(output: RequestOutput | None) -> RequestOutput:
    """Return the output that ends every request; an engine that stopped early has none."""
    if output is None:
        raise CapaxError("the engine ended a request without its output")
    return output


def check_piece(piece: StreamPiece) -> None:
    """Raise what ended a choice before its time: logits that were not finite, or a shutdown."""
    if piece.finish_reason == "error":
        raise ApiError(
            500,
            "the model's logits were not finite, so nothing can be sampled; run 'capax inspect' "
            "on the model file",
        )
    if piece.finish_reason == "cancelled":
        raise not_ready("the server ended the request before it was finished", "cancelled")


# --- what it used --------------------------------------------------------------------------


def usage_of(outputs: Sequence[RequestOutput], reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return OpenAI's `usage`; cached and reasoning tokens are parts of the other counts."""
    n_prompt = sum(o.usage.prompt_tokens for o in outputs)
    n_new = sum(o.usage.completion_tokens for o in outputs)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": sum(o.usage.cached_tokens for o in outputs)},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def timings_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Return llama-server's `timings`. Prompts of one request run together: times are the
    longest, counts the sums."""
    parts = [o.timings for o in outputs]
    return timings(
        cache_n=sum(t.cache_n for t in parts),
        prompt_n=sum(t.prompt_n for t in parts),
        prompt_ms=max(t.prompt_ms for t in parts),
        predicted_n=sum(t.predicted_n for t in parts),
        predicted_ms=max(t.predicted_ms for t in parts),
    )


def timings(
    *, cache_n: int, prompt_n: int, prompt_ms: float, predicted_n: int, predicted_ms: float
) -> dict[str, Any]:
    """Return llama-server's keys; rates are 0 where no time has passed."""
    return {
        "cache_n": cache_n,
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
        "prompt_per_second": 1e3 * prompt_n / prompt_ms if prompt_ms > 0 else 0.0,
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / predicted_n if predicted_n else 0.0,
        "predicted_per_second": 1e3 * predicted_n / predicted_ms if predicted_ms > 0 else 0.0,
    }


def capacity_of(
    server: Server, fields: SamplingFields, outputs: Sequence[RequestOutput]
) -> dict[str, Any]:
    """Return the `capax` object: memory held now, why no prompt was reused, what was spent on
    what."""
    return {
        "memory": {f"{kind}_bytes": n for kind, n in server.llm.measured_memory().items()},
        "cache_miss_reason": _cache_miss_reason(fields, outputs),
        "strategy": [
            {
                "method": "autoregressive",
                "calls": len(outputs),
                "completion_tokens": sum(o.usage.completion_tokens for o in outputs),
            }
        ],
    }


def _cache_miss_reason(fields: SamplingFields, outputs: Sequence[RequestOutput]) -> str | None:
    if any(o.usage.cached_tokens for o in outputs):
        return None
    if fields.cache_prompt is False:
        return "disabled"
    if all(o.usage.prompt_tokens <= PAGE_TOKENS for o in outputs):
        return "short_prompt"
    return "not_found"


def fingerprint(server: Server) -> str:
    """Return `system_fingerprint`: equal seeds give equal text while it stays the same."""
    llm = server.llm
    return _fingerprint(capax.__version__, llm.isa, llm.name, str(llm.plan.kv), server.model_name)


@lru_cache(maxsize=8)
def _fingerprint(*parts: str) -> str:
    return "capax-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def new_id(prefix: str) -> str:
    """Return the id of a response, for example `chatcmpl-...`."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Stopwatch:
    """Timings of a stream that is still running, for `timings_per_token`."""

    def __init__(self, n_prompt: int) -> None:
        self._n_prompt = n_prompt
        self._started_s = time.perf_counter()
        self._first_s: float | None = None
        self._n_tokens = 0

    def add(self, n_tokens: int) -> dict[str, Any]:
        """Count tokens that have come; return the timings so far."""
        now = time.perf_counter()
        if self._first_s is None:
            self._first_s = now
        else:
            self._n_tokens += n_tokens
        return timings(
            cache_n=0,
            prompt_n=self._n_prompt,
            prompt_ms=1e3 * (self._first_s - self._started_s),
            predicted_n=self._n_tokens,
            predicted_ms=1e3 * (now - self._first_s),
        )
