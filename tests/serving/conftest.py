"""A tiny random model behind the application: without sockets `client`, with them `live_server`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capax import LLM
from capax.serving.app import create_app
from capax.serving.config import ServerConfig
from capax.serving.listen import Listener
from capax.serving.state import Progress, Server
from tests.models import gguf_model
from tests.serving.raw import close_all

MODEL_NAME = "tiny"
CONTEXT_LEN = 512
DEADLINE_S = 20.0

Load = Callable[[Progress], LLM]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def closed_sockets() -> Iterator[None]:
    """A test may leave its plain sockets open."""
    yield
    close_all()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A random llama with a byte-level tokenizer and a chat template: a GGUF file."""
    return gguf_model("llama")


@pytest.fixture(scope="session")
def tiny_llm(tiny_model: Path) -> LLM:
    """The tiny model, loaded once; the engine forgets between servers what it kept."""
    return LLM(tiny_model, threads=1, n_sequences=8)


def tiny_config(**settings: Any) -> ServerConfig:
    """The configuration of tests: the model is called 'tiny'."""
    return ServerConfig(**{"model_name": MODEL_NAME, "port": 0, "drain_s": 5.0, **settings})


@asynccontextmanager
async def client_of(
    llm: LLM, load: Load | None = None, **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an application of its own, without sockets: `settings` as in ServerConfig.

    `client.server` is not there with sockets either: use `running_client` for the state.
    """
    async with running_client(llm, load, **settings) as (client, _):
        yield client


@asynccontextmanager
async def running_client(
    llm: LLM, load: Load | None = None, **settings: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, Server]]:
    """Like `client_of`, with the server's state beside the client."""
    app = create_app(tiny_config(**settings), load or (lambda progress: llm))
    server: Server = app.state.server
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        if load is None:
            await until(lambda: server.is_ready or server.failure is not None)
        yield client, server


@pytest.fixture
async def client(tiny_llm: LLM, anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a ready application in this process, without sockets."""
    async with client_of(tiny_llm) as client:
        yield client


@dataclass(frozen=True)
class LiveServer:
    """A server with a socket, in a thread of this process."""

    listener: Listener
    server: Server

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_idle(self) -> None:
        """Wait until nothing runs or waits; fails after a deadline."""
        wait_until(lambda: not self.server.exchanges and _n_active(self.server) == 0)


@contextmanager
def live(llm: LLM, load: Load | None = None, **settings: Any) -> Iterator[LiveServer]:
    """A live server of its own; `settings` as in ServerConfig."""
    app = create_app(tiny_config(**settings), load or (lambda progress: llm))
    listener = Listener(app)
    thread = threading.Thread(target=listener.run, name="live-server")
    thread.start()
    try:
        server: Server = app.state.server
        wait_until(lambda: listener.port != 0)
        if load is None:
            wait_until(lambda: server.is_ready or server.failure is not None)
        yield LiveServer(listener, server)
    finally:
        listener.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def live_server(tiny_model: Path) -> Iterator[LiveServer]:
    """A ready server on a free port of 127.0.0.1, for streams, disconnects and real clients.

    It has an engine of its own: it runs beside the servers of other tests of its module, and of two
    runners on one engine either may step, and lose, what the other one waits for.
    """
    with LLM(tiny_model, threads=1, n_sequences=8) as llm, live(llm) as server:
        yield server


def wait_until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Poll until `condition` holds; fails after the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        time.sleep(0.005)


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """The same, in a coroutine."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        await asyncio.sleep(0.005)


def _n_active(server: Server) -> int:
    stats = server.runner.stats()
    return stats.n_running + stats.n_waiting
