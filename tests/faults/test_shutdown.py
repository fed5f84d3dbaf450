"""The end of a server: asked for, forced, or because its engine has died."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capax import LLM
from tests.serving.conftest import LiveServer, live, wait_until
from tests.serving.raw import connect, exchange, post, read_response, status

LONG = {"prompt": "the rain", "max_tokens": 480, "ignore_eos": True, "temperature": 0}
KEY = "a-key-of-the-tests"


class Process:
    """`capax serve` as a user starts it."""

    def __init__(self, model: Path, *flags: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "capax", "serve", str(model), "--port", "0", *flags],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "CAPAX_API_KEY": KEY},
        )
        self.log = ""
        while "API http" not in self.log:
            line = self._readline()
            assert line, f"the server ended: {self.log}"
            self.log += line
        found = re.search(r"API http://127\.0\.0\.1:(\d+)/v1", self.log)
        assert found, self.log
        self.port = int(found[1])

    def _readline(self) -> str:
        assert self._child.stderr is not None
        return self._child.stderr.readline()

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, number: int) -> None:
        self._child.send_signal(number)

    def wait(self) -> int:
        _, rest = self._child.communicate(timeout=30)
        self.log += rest or ""
        return self._child.returncode

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.communicate(timeout=30)


@contextlib.contextmanager
def started(model: Path, *flags: str) -> Iterator[Process]:
    process = Process(model, *flags)
    try:
        yield process
    finally:
        process.stop()


def ask(port: int, **more: Any) -> socket.socket:
    connection = connect(port)
    connection.sendall(post("/v1/completions", LONG | more, f"Authorization: Bearer {KEY}"))
    return connection


def everything(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.slow
def test_sigterm_under_load_lets_streams_finish(tiny_model: Path) -> None:
    with started(tiny_model, "--parallel", "4", "--log-format", "json") as process:
        streams = [ask(process.port, stream=True, max_tokens=200) for _ in range(8)]
        plain = ask(process.port, max_tokens=100)
        for stream in streams:
            assert stream.recv(1)  # it has begun
        process.send(signal.SIGHUP)  # ends nothing
        process.send(signal.SIGTERM)
        answers = [everything(stream) for stream in streams]
        assert all(b"data: [DONE]" in answer for answer in answers)
        assert not any(b'"error"' in answer for answer in answers)
        assert status(read_response(plain)) == 200
        with pytest.raises(ConnectionError):
            connect(process.port)
        assert process.wait() == 0
        assert '"event": "draining"' in process.log
        assert KEY not in process.log


@pytest.mark.slow
def test_what_outlasts_the_drain_ends_with_an_event(tiny_model: Path) -> None:
    flags = ("--parallel", "16", "--drain", "0.2s")
    with started(tiny_model, *flags) as process:
        wide = {"n": 8, "logprobs": 20, "max_tokens": 480}
        streams = [ask(process.port, stream=True, **wide) for _ in range(4)]
        for stream in streams:
            assert stream.recv(1)
        process.send(signal.SIGTERM)
        answers = [everything(stream) for stream in streams]
        assert all(answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for answer in answers)
        assert any(b'"code":"shutting_down"' in answer for answer in answers)
        assert process.wait() == 0


@pytest.mark.slow
def test_the_second_signal_leaves_at_once(tiny_model: Path) -> None:
    with started(tiny_model, "--parallel", "8", "--drain", "1h") as process:
        stream = ask(process.port, stream=True, n=8, logprobs=20)
        assert stream.recv(1)
        process.send(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while True:  # the first has been heard when nobody new is let in
                connect(process.port).close()
                time.sleep(0.01)
        process.send(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_model_that_does_not_fit_ends_with_its_exit_code(tiny_model: Path) -> None:
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "capax",
            "serve",
            str(tiny_model),
            "--port",
            "0",
            "--memory",
            "1MiB",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr


def test_a_draining_server_says_so_and_takes_nothing_new(tiny_llm: LLM) -> None:
    with live(tiny_llm, parallel=2) as server, contextlib.ExitStack() as stack:
        kept = stack.enter_context(httpx2.Client(base_url=server.base_url))
        assert kept.get("/ready").status_code == 200
        stream = stack.enter_context(contextlib.closing(ask(server.port, stream=True)))
        assert stream.recv(1)
        server.server.is_draining = True
        ready = kept.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "draining"
        assert kept.get("/health").status_code == 200
        refused = kept.post("/v1/completions", json=LONG)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert b"[DONE]" in everything_of(stream)


def everything_of(stream: socket.socket) -> bytes:
    answer = b""
    while b"[DONE]" not in answer:
        part = stream.recv(65536)
        assert part
        answer += part
    return answer


class StepFailed(RuntimeError):
    """What the tests put into the engine."""


def break_engine(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StepFailed("a kernel failed")

    monkeypatch.setattr(server.server.llm.engine, "step", fail)


@pytest.fixture
def own_llm(tiny_model: Path) -> LLM:
    """A model of its own: it is not usable afterwards."""
    return LLM(tiny_model, threads=1, n_sequences=8)


def test_when_the_engine_dies_everybody_is_told_and_the_server_ends(
    own_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(own_llm) as server:
        stream = ask(server.port, stream=True, n=4, logprobs=20)
        assert status(stream.recv(4096)) == 200
        plain = ask(server.port, n=4, logprobs=20)
        wait_until(lambda: len(server.server.exchanges) == 2)
        break_engine(server, monkeypatch)
        answer = read_response(plain)
        assert status(answer) == 500
        assert b'"type":"server_error"' in answer
        told = everything(stream)
        assert b'data: {"error":{' in told
        assert b"[DONE]" in told
        wait_until(lambda: server.server.failure is not None)
    assert isinstance(server.server.failure, StepFailed)


def test_after_the_engine_died_health_is_503(own_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with live(own_llm) as server, httpx2.Client(base_url=server.base_url) as client:
        assert client.get("/health").status_code == 200
        # Hold the listener: it leaves by itself as soon as it knows.
        monkeypatch.setattr(server.server.failed, "set", lambda: None)
        break_engine(server, monkeypatch)
        answer = exchange(server.port, post("/v1/completions", LONG))
        assert status(answer) == 500
        wait_until(lambda: server.server.failure is not None)
        assert client.get("/health").status_code == 503
        assert client.get("/ready").json()["status"] == "failed"
        assert client.post("/v1/completions", json=LONG).status_code == 500
