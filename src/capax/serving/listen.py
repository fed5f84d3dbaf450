"""The listener: uvicorn with our protocol, our signals and our way to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from capax.serving.lifecycle import drain
from capax.serving.protocol import protocol_class
from capax.serving.state import Server

CLOSE_S = 3.0  # for connections to take their last bytes after everything has ended
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Listener:
    """Serves an application until it is stopped. `port` is 0 until the socket is open."""

    def __init__(self, app: FastAPI) -> None:
        self._server: Server = app.state.server
        config = self._server.config
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                log_config=None,
                access_log=False,
                server_header=False,
                http=protocol_class(config),
                ws="none",
                lifespan="on",
                timeout_keep_alive=int(config.keep_alive_s),
                timeout_graceful_shutdown=int(CLOSE_S),
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.port = 0

    def run(self) -> None:
        """Serve in this thread until `stop`, a signal, or a failure of the engine."""
        with asyncio.Runner(loop_factory=self._uvicorn.config.get_loop_factory()) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """Drain and end; callable from any thread. A second call ends at once."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        listening = _bound_socket(self._server.config.host, self._server.config.port)
        self.port = listening.getsockname()[1]
        previous = self._take_signals()
        watcher = asyncio.create_task(self._leave_on_failure())
        try:
            await self._uvicorn.serve(sockets=[listening])
        finally:
            watcher.cancel()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _take_signals(self) -> dict[signal.Signals, signal.Handlers]:
        try:
            return {number: signal.signal(number, self._on_signal) for number in SIGNALS}  # type: ignore[misc]  # what was there before is put back as it was
        except ValueError:  # not the main thread, which alone gets signals
            return {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop()

    def _stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self._uvicorn.force_exit = True
            self._uvicorn.should_exit = True

    async def _drain(self) -> None:
        for server in getattr(self._uvicorn, "servers", ()):
            server.close()  # nobody new
        await drain(self._server)
        self._uvicorn.should_exit = True

    async def _leave_on_failure(self) -> None:
        await self._server.failed.wait()
        self._uvicorn.should_exit = True


class _Uvicorn(uvicorn.Server):
    def install_signal_handlers(self) -> None:  # pragma: no cover  # older versions call this
        """Signals are the listener's."""

    def capture_signals(self):  # type: ignore[no-untyped-def]
        """Signals are the listener's."""
        from contextlib import nullcontext

        return nullcontext()


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.setblocking(False)
    return listening
