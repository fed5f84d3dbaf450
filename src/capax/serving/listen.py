"""The listener: uvicorn with our protocol, our signals and our way to stop.

The first SIGTERM or Ctrl-C closes the socket, lets what is running finish and ends; a second
one leaves at once. A terminal that goes away (SIGHUP) ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from capax.errors import ConfigError
from capax.serving.lifecycle import drain
from capax.serving.logs import log_event
from capax.serving.protocol import protocol_class
from capax.serving.state import Server

CLOSE_S = 3  # for connections to take their last bytes after everything has ended
BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Listener:
    """Serves an application until it is stopped. `port` is 0 until the socket is open."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None] | None = None) -> None:
        self._server: Server = app.state.server
        config = self._server.config
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=protocol_class(config),
                ws="none",
                proxy_headers=False,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=int(config.keep_alive_s),
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.port = 0

    def run(self, *, handles_signals: bool = False) -> None:
        """Serve in this thread until `stop`, a signal, or a failure.

        Raises ConfigError if the address cannot be had. Only the main thread handles signals.
        """
        listening = bound_socket(self._server.config.host, self._server.config.port)
        with (
            self._signals() if handles_signals else contextlib.nullcontext(),
            asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner,
        ):
            runner.run(self._serve(listening))

    def stop(self) -> None:
        """Drain and end; callable from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._begin_drain)

    async def _serve(self, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.port = listening.getsockname()[1]
        minders = [
            asyncio.create_task(self._leave_on_failure()),
            asyncio.create_task(self._announce()),
        ]
        try:
            await self._uvicorn.serve(sockets=[listening])
        finally:
            for minder in minders:
                minder.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._draining is not None or self._loop is None:
            os._exit(128 + number)  # the second says: now
        self.stop()

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        for server in getattr(self._uvicorn, "servers", ()):
            server.close()  # nobody new
        log_event("draining", n_running=len(self._server.exchanges))
        await drain(self._server)
        self._uvicorn.should_exit = True

    async def _leave_on_failure(self) -> None:
        await self._server.failed.wait()
        self._uvicorn.should_exit = True

    async def _announce(self) -> None:
        await self._server.loaded.wait()
        if self._on_ready is not None:
            self._on_ready()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the listener's."""
        yield


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address. Raises ConfigError if it cannot be had."""
    try:
        [*_, (family, _, _, _, address)] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as e:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {e.strerror}; choose another with --port"
        ) from None
    listening.setblocking(False)
    return listening
