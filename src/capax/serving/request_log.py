"""`capax serve --request-log`: one line per finished request, of counts and times.

`RequestLogging`, the outermost middleware, gives each POST an `Account`; `Server.stream` opens a
`Call` in it for every prompt that goes to the engine, and the line is written when the answer has
left. Nothing in a line comes from a client but numbers: the route is the server's own template,
the model the server's own name, and a request that no route took (a wrong key, an unknown path)
leaves none.

A line is one write of bounded length at the end of the file, so several may share a file and
nothing is buffered. What cannot be written is counted and said once; serving goes on.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capax.errors import ConfigError
from capax.measuring.served_log import ServedRequest
from capax.serving.exchange import CLIENT_LEFT_STATUS
from capax.serving.logs import LOGGER

if TYPE_CHECKING:
    from capax.engine.outputs import RequestOutput

ACCOUNT = "capax.account"  # of a request, in its scope
OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(slots=True)
class Call:
    """One prompt on its way through the engine; cancelled until it is known to have ended."""

    n_prompt: int
    n_choices: int
    n_new: int = 0
    n_cached: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    reasons: set[str] = field(default_factory=lambda: {"cancelled"})

    def finish(self, output: RequestOutput, queue_s: float) -> None:
        """Take the engine's own counts and times."""
        self.n_new = output.usage.completion_tokens
        self.n_cached = output.usage.cached_tokens
        self.queue_s = queue_s
        self.prefill_s = output.timings.prompt_ms / 1e3
        self.decode_s = output.timings.predicted_ms / 1e3
        self.reasons = {choice.finish_reason for choice in output.outputs}


class Account:
    """The calls of one HTTP request."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def begin(self, n_prompt: int, n_choices: int) -> Call:
        call = Call(n_prompt, n_choices)
        self.calls.append(call)
        return call

    def request(
        self, *, came: float, route: str, model: str, status: int, seconds: float
    ) -> ServedRequest:
        """Return the line's content."""
        reasons = {reason for call in self.calls for reason in call.reasons}
        return ServedRequest(
            time=came,
            route=route,
            model=model,
            status=status,
            calls=len(self.calls),
            choices=sum(call.n_choices for call in self.calls),
            prompt_tokens=sum(call.n_prompt for call in self.calls),
            cached_tokens=sum(call.n_cached for call in self.calls),
            completion_tokens=sum(call.n_new for call in self.calls),
            seconds=seconds,
            queue_seconds=sum(call.queue_s for call in self.calls),
            prefill_seconds=sum(call.prefill_s for call in self.calls),
            decode_seconds=sum(call.decode_s for call in self.calls),
            finish_reason="mixed" if len(reasons) > 1 else next(iter(reasons), ""),
        )


def begin_call(scope: Scope, n_prompt: int, n_choices: int) -> Call | None:
    """Note a prompt in its request's account; None if no log is kept."""
    account: Account | None = scope.get(ACCOUNT)
    return None if account is None else account.begin(n_prompt, n_choices)


class RequestLog:
    """An open log. Raises ConfigError for a file that cannot be one, or that others may read."""

    def __init__(self, path: Path) -> None:
        self.n_lost = 0  # lines that could not be written
        self._is_failing = False
        try:
            self._file = os.open(path, OPEN_FLAGS, 0o600)
        except OSError as e:
            raise ConfigError(f"cannot open the request log {path}: {e.strerror}") from None
        try:
            self._needs_newline = _check(self._file, path)
        except BaseException:
            self.close()
            raise

    def write(self, request: ServedRequest) -> None:
        """Append a line. Never raises for what the disk does."""
        line = request.to_line()
        if self._needs_newline:  # the line before was cut off
            line = b"\n" + line
        try:
            n = os.write(self._file, line)
            reason = "" if n == len(line) else "the disk is full"
            self._needs_newline = (self._needs_newline and n == 0) or 0 < n < len(line)
        except OSError as e:
            reason = e.strerror or str(e)
        if reason:
            self.n_lost += 1
            if not self._is_failing:
                LOGGER.error("the request log cannot be written (%s); serving goes on", reason)
        self._is_failing = bool(reason)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _check(file: int, path: Path) -> bool:
    """Return whether the file ends within a line. Raises ConfigError if it is no log."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"the request log {path} is no regular file; name one")
    if found.st_mode & 0o077:
        raise ConfigError(
            f"the request log {path} has mode {stat.S_IMODE(found.st_mode):o}, so others may use "
            f"it; run 'chmod 600 {path}' or name another file"
        )
    return found.st_size > 0 and os.pread(file, 1, found.st_size - 1) != b"\n"


class RequestLogging:
    """Writes a line for every POST that a route took, when its answer has left."""

    def __init__(self, app: ASGIApp, log: RequestLog, model: str) -> None:
        self._app = app
        self._log = log
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        account = scope[ACCOUNT] = Account()
        came, began_s = time.time(), time.perf_counter()
        status = CLIENT_LEFT_STATUS

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                self._log.write(account.request(
                    came=came, route=route, model=self._model, status=status,
                    seconds=time.perf_counter() - began_s,
                ))  # fmt: skip
