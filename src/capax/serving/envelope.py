"""The outermost middleware: what every response has, and what every error becomes."""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capax.serving.errors import as_api_error, error_response
from capax.serving.exchange import CLIENT_LEFT_STATUS, hang_up
from capax.serving.logs import log_event, log_failure
from capax.serving.state import Server

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Envelope:
    """Request ids, security headers, a line in the log, and errors in the shape of the API."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope["capax.request_id"] = request_id
        began_s = time.perf_counter()
        status = 0  # until the response starts

        async def dressed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
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
        except Exception as error:  # noqa: BLE001  # a border: every error becomes a body
            answer = as_api_error(error)
            if answer is not error and answer.status == 500:
                log_failure(error, request_id=request_id)
            if status:
                hang_up(scope)
            else:
                await error_response(answer, scope["path"])(scope, receive, dressed_send)
        finally:
            if scope["method"] == "POST" or status >= 400:
                log_event(
                    "request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=status or CLIENT_LEFT_STATUS,
                    duration_ms=round(1e3 * (time.perf_counter() - began_s), 1),
                )
