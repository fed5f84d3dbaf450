"""The innermost middleware: receives bodies within the limits and runs routes as exchanges.

A body is counted while it comes, whatever its declared length. What is worked on is bounded,
together and per key. The connection is watched while the route works, for streams and plain
answers alike: when the client leaves, the work ends.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capax.serving.auth import TENANT
from capax.serving.errors import ApiError, error_response, not_ready, queue_full
from capax.serving.exchange import Exchange, Silent, hang_up
from capax.serving.state import Server

LINGER_S = 2.0
LINGER_NBYTES = 256 << 20


class Intake:
    """Receives bodies within the limits, and ends the work when the client leaves."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if self._server.is_draining:
            raise not_ready("the server is shutting down; ask again soon", "shutting_down")
        held = _Held(self._server)
        try:
            try:
                _check_content_type(scope)
                body = await self._receive_body(scope, receive, held)
            except ApiError as error:
                held.release()  # what comes now is not kept
                await _answer_a_sender(error, scope, receive, send)
                return
            if body is not None:
                await self._work(scope, body, receive, send)
        finally:
            held.release()

    async def _receive_body(self, scope: Scope, receive: Receive, held: _Held) -> bytes | None:
        """Return the whole body; None if the client left before it was here."""
        limit = self._server.config.max_body_nbytes
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            held.add(len(part))
            if held.nbytes > limit:
                raise _too_large(limit)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _work(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the route as an exchange: one of a bounded number, ended when the client leaves."""
        server = self._server
        tenant: str = scope.get(TENANT, "")
        self._admit(tenant)
        exchange = Exchange(tenant)
        scope["capax.exchange"] = exchange
        server.exchanges.add(exchange)
        watcher = asyncio.create_task(_watch(receive, exchange))
        timer = asyncio.get_running_loop().call_later(
            server.config.request_timeout_s, exchange.abort, _timed_out(server)
        )
        try:
            await self._app(scope, _replay(body), send)
        except asyncio.CancelledError:
            reason = exchange.take_cancellation()
            if reason is None:
                raise
            if isinstance(reason, ApiError):
                raise reason from None
        finally:
            exchange.is_over = True
            server.exchanges.discard(exchange)
            timer.cancel()
            watcher.cancel()
        if exchange.reason is Silent.SLOW_READER:
            hang_up(scope)

    def _admit(self, tenant: str) -> None:
        config = self._server.config
        n = len(self._server.exchanges)
        if n >= config.max_queue + config.parallel:
            raise queue_full(
                f"{n} requests are running and waiting, the limit set by --parallel and "
                "--max-queue; ask again later"
            )
        n = sum(exchange.tenant == tenant for exchange in self._server.exchanges)
        if n >= config.max_per_key:
            raise queue_full(
                f"{n} requests of this key are running and waiting, the limit set by "
                "--max-per-key; ask again later"
            )


class _Held:
    """The bytes of one body, counted among those of all requests until its request is over."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.nbytes = 0

    def add(self, nbytes: int) -> None:
        """Count bytes that came. Raises ApiError 429 if all bodies together are too many."""
        self.nbytes += nbytes
        self._server.buffered_nbytes += nbytes
        if self._server.buffered_nbytes > self._server.config.max_buffered_nbytes:
            raise queue_full("the bodies of all requests together are too large; ask again later")

    def release(self) -> None:
        self._server.buffered_nbytes -= self.nbytes
        self.nbytes = 0


def _check_content_type(scope: Scope) -> None:
    """A page of a stranger can post plain text or a form without asking, but not JSON."""
    given = Headers(scope=scope).get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415, f"the Content-Type is {given!r:.80} but must be application/json; send JSON"
        )


async def _answer_a_sender(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a client that may still be sending, and hear it out for a moment.

    Closing at once would reset the connection under its hands, and the answer be lost.
    """
    response = error_response(error, scope["path"])
    response.headers["Connection"] = "close"
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    n_received = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while n_received < LINGER_NBYTES:
                message = await receive()
                n_received += len(message.get("body", b""))
                if not message.get("more_body", False):  # the end, or a closed connection
                    break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes, the limit set by --max-body-size",
        code="request_too_large",
    )


def _timed_out(server: Server) -> ApiError:
    return ApiError(
        503,
        f"the request took longer than {server.config.request_timeout_s:g} s, the limit set by "
        "--request-timeout",
        code="request_timeout",
        headers={"x-should-retry": "false"},
    )


def _replay(body: bytes) -> Receive:
    """A `receive` that hands out the body once; afterwards the connection is somebody else's."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the watcher has the socket, and cancels us if it closes
        return {"type": "http.disconnect"}

    return receive


async def _watch(receive: Receive, exchange: Exchange) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.abort(Silent.CLIENT_LEFT)
