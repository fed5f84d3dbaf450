"""What every request passes before its route: envelope, host, key, intake. Pure ASGI.

`Envelope` gives the request its id and turns whatever is raised inside into an error body.
`HostGuard` refuses foreign hosts and origins. `KeyGuard` refuses whoever has no key: a route
is closed unless its path is in the open list. `Intake` receives the body, counting, and
watches the connection while the request is worked on.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capax.serving.auth import TENANT
from capax.serving.errors import ApiError, as_api_error, error_response, not_ready
from capax.serving.exchange import Exchange, Silent
from capax.serving.logs import log_failure
from capax.serving.state import Server

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Envelope:
    """Request ids, security headers, and errors in the shape of the API that was asked."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope["capax.request_id"] = request_id
        has_started = False

        async def dressed_send(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                ignored = scope.get("capax.ignored_params")
                if ignored:
                    headers["X-Capax-Ignored-Params"] = ignored
            await send(message)

        try:
            await self._app(scope, receive, dressed_send)
        except Exception as error:  # a border: every error becomes a body
            answer = as_api_error(error)
            if answer is not error and answer.status == 500:
                log_failure(error)
            if has_started:
                raise
            await error_response(answer, scope["path"])(scope, receive, dressed_send)


class KeyGuard:
    """Default-deny: without a valid key nothing answers but the open paths."""

    def __init__(self, app: ASGIApp, server: Server, open_paths: Collection[str]) -> None:
        self._app = app
        self._server = server
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            scope[TENANT] = self._server.keys.tenant(scope)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS":
            return True
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths


class Intake:
    """Receives bodies within the limits, and ends the work when the client leaves."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        server = self._server
        if server.is_draining:
            raise not_ready("the server is shutting down; ask again soon", "shutting_down")
        body = await self._receive_body(scope, receive)
        if body is None:
            return
        exchange = Exchange(scope.get(TENANT, ""))
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

    async def _receive_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client left before it was here."""
        server, limit = self._server, self._server.config.max_body_nbytes
        _check_declared_length(scope, limit)
        parts: list[bytes] = []
        n_received = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                part: bytes = message.get("body", b"")
                n_received += len(part)
                server.buffered_nbytes += len(part)
                if n_received > limit:
                    raise _too_large(limit)
                if server.buffered_nbytes > server.config.max_buffered_nbytes:
                    raise not_ready("too many bodies are being received", "overloaded")
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            server.buffered_nbytes -= n_received


def _check_declared_length(scope: Scope, limit: int) -> None:
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes, the limit set by --max-body-size",
        code="request_too_large",
        headers={"Connection": "close"},
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
