"""Event streams: what is sent when all goes well, when it does not, and when nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from capax.errors import CapaxError
from capax.serving.errors import ApiError
from capax.serving.exchange import Exchange, Silent
from capax.serving.sse import (
    DONE,
    KEEP_ALIVE,
    EventStream,
    anthropic_error,
    data_line,
    event_lines,
)
from tests.serving.conftest import tiny_config, until

pytestmark = pytest.mark.anyio


class Chunks:
    """An iterator that notes whether it was closed."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.is_closed = False

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        return await self._source.__anext__()

    async def aclose(self) -> None:
        self.is_closed = True


class Client:
    """The other end of an ASGI application."""

    def __init__(self, **settings: Any) -> None:
        self.messages: list[Any] = []
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        app = SimpleNamespace(
            state=SimpleNamespace(server=SimpleNamespace(config=tiny_config(**settings)))
        )
        self.scope: dict[str, Any] = {"type": "http", "app": app}

    async def send(self, message: Any) -> None:
        await self.is_reading.wait()
        self.messages.append(message)

    async def receive(self) -> Any:
        raise AssertionError("the stream does not read: Intake does")

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    async def read(self, stream: EventStream) -> Exchange:
        """Run the stream as `Intake` does: in a task whose request it is."""
        exchange = self.scope["capax.exchange"] = Exchange("")
        await stream(self.scope, self.receive, self.send)
        return exchange


async def numbers(n: int, error: Exception | None = None) -> AsyncIterator[bytes]:
    for i in range(n):
        yield data_line({"i": i})
    if error is not None:
        raise error


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield data_line({"x": "y" * 1000})
        await asyncio.sleep(0)


async def never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def test_events_are_the_bytes_the_protocols_want() -> None:
    assert data_line({"a": "ä\n"}) == 'data: {"a":"ä\\n"}\n\n'.encode()
    assert event_lines("ping", {"type": "ping"}) == b'event: ping\ndata: {"type":"ping"}\n\n'


async def test_a_stream_is_sent_chunk_by_chunk_with_its_headers() -> None:
    client, chunks = Client(), Chunks(numbers(3))
    await client.read(EventStream(chunks))
    headers = {name.decode(): value.decode() for name, value in client.messages[0]["headers"]}
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert client.body == b"".join(data_line({"i": i}) for i in range(3))
    assert client.is_complete
    assert chunks.is_closed


@pytest.mark.parametrize(
    ("error", "status_words"),
    [
        (ApiError(503, "the queue ended"), "the queue ended"),
        (CapaxError("the engine has stopped"), "the engine has stopped"),
        (ValueError("a secret of the implementation"), "an internal error"),
    ],
)
async def test_an_error_in_mid_stream_is_the_last_event(
    error: Exception, status_words: str
) -> None:
    client, chunks = Client(), Chunks(numbers(2, error))
    await client.read(EventStream(chunks))
    *_, last, done, rest = client.body.split(b"\n\n")
    assert done + b"\n\n" == DONE
    assert rest == b""
    told = json.loads(last.removeprefix(b"data: "))["error"]
    assert status_words in told["message"]
    assert "secret" not in told["message"]
    assert set(told) == {"message", "type", "param", "code"}
    assert client.is_complete
    assert chunks.is_closed


async def test_a_messages_stream_fails_in_its_own_form() -> None:
    client = Client()
    error = ApiError(503, "shutting down")
    await client.read(EventStream(Chunks(numbers(0, error)), on_error=anthropic_error))
    assert client.body.startswith(b"event: error\ndata: ")
    assert b'"overloaded_error"' in client.body


async def test_an_aborted_stream_tells_why() -> None:
    client, chunks = Client(), Chunks(endless())
    task = asyncio.create_task(client.read(EventStream(chunks)))
    await until(lambda: len(client.messages) > 5)
    client.scope["capax.exchange"].abort(ApiError(503, "shutting down", code="shutting_down"))
    exchange = await task
    assert client.body.endswith(DONE)
    assert b'"code":"shutting_down"' in client.body
    assert client.is_complete
    assert chunks.is_closed
    assert isinstance(exchange.reason, ApiError)


async def test_a_stream_nobody_reads_is_closed_without_a_word() -> None:
    client, chunks = Client(), Chunks(endless())
    task = asyncio.create_task(client.read(EventStream(chunks)))
    await until(lambda: len(client.messages) > 5)
    client.scope["capax.exchange"].abort(Silent.CLIENT_LEFT)
    await task
    assert chunks.is_closed
    assert not client.is_complete


async def test_a_reader_that_is_stuck_is_left_after_a_while() -> None:
    client, chunks = Client(slow_reader_s=0.05), Chunks(endless())
    task = asyncio.create_task(client.read(EventStream(chunks)))
    await until(lambda: len(client.messages) > 5)
    client.is_reading.clear()
    exchange = await task
    assert exchange.reason is Silent.SLOW_READER
    assert chunks.is_closed
    assert not client.is_complete


async def test_a_foreign_cancellation_is_passed_on() -> None:
    client, chunks = Client(), Chunks(never())
    task = asyncio.create_task(client.read(EventStream(chunks)))
    await until(lambda: len(client.messages) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert chunks.is_closed


async def test_an_idle_stream_sends_comments() -> None:
    client = Client(sse_keep_alive_s=0.02)
    task = asyncio.create_task(client.read(EventStream(Chunks(never()))))
    await until(lambda: client.body.count(KEEP_ALIVE) >= 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
