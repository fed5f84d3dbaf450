"""Server-sent events: the encoding of one event, and the response that sends many.

The iterator's chunks are written as they come, each as one chunk of the body. While nothing
comes, a comment keeps the connection alive. An error in mid-stream becomes an event, as the
status is long sent. However the stream ends, the iterator is closed, which cancels the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from capax.errors import CapaxError
from capax.serving.errors import ApiError, anthropic_error_object, as_api_error, error_object
from capax.serving.exchange import Exchange, Silent
from capax.serving.logs import log_failure

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_encode = msgspec.json.Encoder().encode


def data_line(obj: object) -> bytes:
    """Return one event of OpenAI's streams: a dict, a msgspec struct, what msgspec can encode."""
    return b"data: " + _encode(obj) + b"\n\n"


def event_lines(name: str, obj: object) -> bytes:
    """Return one named event, as /v1/responses and /v1/messages send them."""
    return b"event: " + name.encode() + b"\ndata: " + _encode(obj) + b"\n\n"


def openai_error(error: ApiError) -> bytes:
    """The end of a chat or completion stream that failed."""
    return data_line(error_object(error)) + DONE


def anthropic_error(error: ApiError) -> bytes:
    """The end of a messages stream that failed."""
    return event_lines("error", anthropic_error_object(error))


class EventStream(Response):
    """Sends chunks of events. `on_error` makes the last bytes of a stream that failed."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterable[bytes],
        *,
        on_error: Callable[[ApiError], bytes] = openai_error,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})
        self._chunks = chunks
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["capax.exchange"]
        config = scope["app"].state.server.config
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        line = _Line(send, exchange, config.sse_keep_alive_s, config.slow_reader_s)
        minder = asyncio.create_task(line.mind())
        try:
            # A task of its own: each token wakes it directly, and not through the twenty
            # coroutines of the routes above. Cancelling us cancels it.
            last = await asyncio.create_task(self._pump(line, exchange))
            if last is not None:
                await line.send(last)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            minder.cancel()

    async def _pump(self, line: _Line, exchange: Exchange) -> bytes | None:
        """Send every chunk; return the last bytes, None if nobody is there to read them."""
        try:
            async for chunk in self._chunks:
                await line.send(chunk)
            return b""
        except asyncio.CancelledError:
            reason = exchange.take_cancellation()
            if reason is None:
                raise
            return None if isinstance(reason, Silent) else self._on_error(reason)
        except CapaxError as error:
            return self._on_error(as_api_error(error))
        except Exception as error:  # noqa: BLE001  # a border: the client is told, the log has it
            log_failure(error)
            return self._on_error(as_api_error(error))
        finally:
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()


class _Line:
    """The way to the client: knows since when it is idle, or stuck."""

    def __init__(
        self, send: Send, exchange: Exchange, keep_alive_s: float, slow_reader_s: float
    ) -> None:
        self._send = send
        self._exchange = exchange
        self._keep_alive_s = keep_alive_s
        self._slow_reader_s = slow_reader_s
        self._clock = asyncio.get_running_loop().time
        self._changed_s = self._clock()  # when sending last began or ended
        self._is_sending = False

    async def send(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._is_sending = True
        self._changed_s = self._clock()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._is_sending = False

    async def mind(self) -> None:
        """Send comments while nothing else is sent; end the exchange of a reader that is stuck."""
        while True:
            # Looks at least this often, as sending may begin or end meanwhile.
            await asyncio.sleep(min(self._keep_alive_s, self._slow_reader_s) / 2)
            unchanged_s = self._clock() - self._changed_s
            if self._is_sending and unchanged_s >= self._slow_reader_s:
                self._exchange.abort(Silent.SLOW_READER)
                return
            if not self._is_sending and unchanged_s >= self._keep_alive_s:
                await self.send(KEEP_ALIVE)
