"""uvicorn's HTTP protocol with deadlines and sizes, which no middleware can see.

uvicorn waits for ever for a request to arrive, and its parser keeps a header of any length.
Here the headers must be there `header_timeout_s` after the first byte (or the connection),
the body `body_timeout_s` later and never slower than `min_body_rate`; headers and URL have
their sizes. A connection that breaks a rule gets one short answer and is closed.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from capax.serving.config import ServerConfig

GRACE_S = 2.0  # before the rate of a body is looked at, and between looks


def protocol_class(config: ServerConfig) -> type[HttpToolsProtocol]:
    """Return the protocol with the limits of `config`, as uvicorn takes it: a class."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": config})


class _BoundedProtocol(HttpToolsProtocol):
    limits: ServerConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._head_nbytes = 0
        self._body_nbytes = 0
        self._body_began_s = 0.0
        self._is_in_head = True
        self._is_refused = False

    # --- the connection -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "too many connections", "overloaded")
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close without waiting for the peer to take what is buffered."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_nbytes += len(data)
        super().data_received(data)
        # Callbacks see only whole headers: one that never ends is seen here.
        head_limit = self.limits.max_header_nbytes + self.limits.max_url_nbytes
        if self._is_in_head and self._head_nbytes > head_limit:
            self._refuse_head()

    # --- the parser's callbacks -----------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_refused:
            return
        earlier: RequestResponseCycle | None = self.cycle
        if earlier is not None and not earlier.response_complete:
            # A further request before the answer: it is not read, and the answer is the last.
            self._is_refused = True
            self._disarm()
            earlier.keep_alive = False
            return
        self._unset_keepalive_if_required()
        self._expect_head()
        super().on_message_begin()
        self.scope["capax.connection"] = self  # type: ignore[typeddict-unknown-key]  # ours

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        self._is_in_head = False
        self._head_nbytes = 0
        n_bytes = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if (
            len(self.url) > self.limits.max_url_nbytes
            or n_bytes > self.limits.max_header_nbytes
            or len(self.headers) > self.limits.max_headers
        ):
            self._refuse_head()
            return
        self._body_nbytes = 0
        self._body_began_s = self.loop.time()
        self._arm(min(GRACE_S, self.limits.body_timeout_s), self._check_body)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            self._body_nbytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            self._disarm()
            self._is_in_head = True
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "the request is not valid HTTP/1.1", None)

    # --- deadlines ------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._is_in_head = True
        self._arm(self.limits.header_timeout_s, self._head_is_late)

    def _arm(self, delay_s: float, action: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(delay_s, action)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        limit = self.limits.header_timeout_s
        self._refuse(408, f"the request's headers took longer than {limit:g} s", None)

    def _check_body(self) -> None:
        elapsed_s = self.loop.time() - self._body_began_s
        if elapsed_s >= self.limits.body_timeout_s:
            limit = self.limits.body_timeout_s
            self._refuse(408, f"the request's body took longer than {limit:g} s", None)
        elif self._body_nbytes < self.limits.min_body_rate * (elapsed_s - GRACE_S):
            rate = self.limits.min_body_rate
            self._refuse(408, f"the request's body came slower than {rate} bytes/s", None)
        else:
            self._arm(min(GRACE_S, self.limits.body_timeout_s - elapsed_s), self._check_body)

    # --- refusing -------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        limits = self.limits
        self._refuse(
            431,
            f"the request's head is too large: at most {limits.max_headers} headers of "
            f"{limits.max_header_nbytes} bytes together and a URL of {limits.max_url_nbytes}",
            "request_too_large",
        )

    def _refuse(self, status: int, message: str, code: str | None) -> None:
        """Answer once and close, unless a response is on its way: then only close."""
        self._is_refused = True
        self._disarm()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            kind = "unavailable_error" if status == 503 else "invalid_request_error"
            error = {"message": message, "type": kind, "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nx-should-retry: false\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
