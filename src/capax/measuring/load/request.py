"""One streamed request and its times, for servers that speak OpenAI's protocol."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from capax.errors import EndpointError
from capax.measuring.load.http import Client
from capax.measuring.load.sse import EventParser
from capax.measuring.load.workload import Planned

Backend = Literal["openai", "openai-chat"]
ENDPOINTS: dict[Backend, str] = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}
MAX_ERROR_NBYTES = 64 << 10
SHOWN_ERROR_CHARS = 300


class Target(NamedTuple):
    """How a server is asked. `extra`: further fields of every body."""

    backend: Backend
    endpoint: str
    model: str
    temperature: float | None = 0.0
    ignore_eos: bool = False
    timeout_s: float = 600.0
    extra: tuple[tuple[str, Any], ...] = ()


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times in seconds; `start_s` on the load's own clock.

    `ttft_s`: from `start_s` to the first piece of text; `gaps_s`: between pieces after it;
    `latency_s`: to the last one. `error` is empty if the stream ended as it should.
    """

    n_prompt: int
    start_s: float
    n_tokens: int = 0
    ttft_s: float = 0.0
    latency_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    text: str = ""
    error: str = ""

    @property
    def is_ok(self) -> bool:
        return not self.error

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first, None for answers of one token."""
        return (self.latency_s - self.ttft_s) / (self.n_tokens - 1) if self.n_tokens > 1 else None


def body_of(target: Target, planned: Planned) -> bytes:
    """Return the JSON of a request."""
    body: dict[str, Any] = {
        "model": target.model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.backend == "openai":
        body |= {"prompt": planned.prompt, "max_tokens": planned.max_tokens}
    else:
        body["messages"] = [{"role": "user", "content": planned.prompt}]
        body["max_completion_tokens"] = body["max_tokens"] = planned.max_tokens
    if target.temperature is not None:
        body["temperature"] = target.temperature
    if target.ignore_eos:
        body["ignore_eos"] = True
    return json.dumps(body | dict(target.extra)).encode()


async def send(
    client: Client,
    target: Target,
    planned: Planned,
    *,
    start_s: float,
    zero_s: float,
    outcome: Outcome | None = None,
) -> Outcome:
    """Run one request to its end. Whatever goes wrong is in the outcome's `error`.

    `start_s`: when its time begins, in seconds after `zero_s` of `time.perf_counter`.
    `outcome`: a new one to fill in, for somebody who wants to watch.
    """
    outcome = outcome or Outcome(planned.n_prompt, start_s)
    try:
        async with asyncio.timeout(target.timeout_s):
            await _stream(client, target, planned, outcome, zero_s + start_s)
    except TimeoutError:
        outcome.error = f"no end within {target.timeout_s:g} s"
    except EndpointError as error:
        outcome.error = str(error)
    return outcome


async def _stream(
    client: Client, target: Target, planned: Planned, outcome: Outcome, began_s: float
) -> None:
    async with client.request("POST", target.endpoint, body_of(target, planned)) as response:
        if response.status != 200:
            raw = await response.body(MAX_ERROR_NBYTES)
            shown = " ".join(raw.decode("utf-8", "replace").split())[:SHOWN_ERROR_CHARS]
            raise EndpointError(f"HTTP {response.status}: {shown}")
        reading = _Reading(outcome, began_s)
        parser = EventParser()
        async for chunk in response.chunks():
            now = time.perf_counter()
            for data in parser.feed(chunk):
                reading.take(data, now)
        reading.end()


class _Delta(msgspec.Struct):
    """Either field is the text of a chat's piece; thinking counts as text."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Event)


class _Reading:
    """The events of one stream as they come in."""

    def __init__(self, outcome: Outcome, began_s: float) -> None:
        self._outcome = outcome
        self._began_s = began_s
        self._last_s = 0.0
        self._parts: list[str] = []
        self._is_done = False
        self._n_counted: int | None = None

    def take(self, data: bytes, now: float) -> None:
        """Note one event that arrived at `now`. Raises EndpointError for one that says error."""
        if data.strip() == b"[DONE]":
            self._is_done = True
            return
        try:
            event = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EndpointError(f"an event is not what OpenAI's protocol has: {error}") from None
        if event.error is not None:
            raise EndpointError(f"error in the stream: {str(event.error)[:SHOWN_ERROR_CHARS]}")
        if event.usage is not None:
            self._n_counted = event.usage.completion_tokens
            if event.usage.prompt_tokens is not None:
                self._outcome.n_prompt = event.usage.prompt_tokens
        for choice in event.choices:
            text = _text_of(choice)
            if text:
                self._parts.append(text)
                self._note(now)

    def _note(self, now: float) -> None:
        outcome = self._outcome
        if outcome.n_tokens == 0:
            outcome.ttft_s = now - self._began_s
        else:
            outcome.gaps_s.append(now - self._last_s)
        self._last_s = now
        outcome.n_tokens += 1
        outcome.latency_s = now - self._began_s

    def end(self) -> None:
        """Check that the stream was whole, and take over the server's count of tokens."""
        outcome = self._outcome
        outcome.text = "".join(self._parts)
        if not self._is_done:
            raise EndpointError("the stream ended without [DONE]")
        if outcome.n_tokens == 0:
            raise EndpointError("the stream has no text")
        if self._n_counted is not None:
            outcome.n_tokens = max(1, self._n_counted)


def _text_of(choice: _Choice) -> str:
    if choice.text is not None:
        return choice.text
    delta = choice.delta
    if delta is None:
        return ""
    return delta.content or delta.reasoning_content or delta.reasoning or ""
