"""Clients that leave, stall, or come in thousands: the server is as before, afterwards."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from capax import LLM
from capax.serving.state import resident_nbytes
from tests.serving.conftest import LiveServer, live, wait_until
from tests.serving.raw import connect, exchange, post, read_response, status

MIB = 1 << 20
LONG = {"prompt": "the rain", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
GREEDY = {"prompt": "one two three", "max_tokens": 24, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def server(tiny_llm: LLM) -> Iterator[LiveServer]:
    with live(tiny_llm) as server:
        yield server


def kill(connection: socket.socket) -> None:
    """Close as a killed process does whose data was not read: with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def text_of(server: LiveServer, **more: Any) -> str:
    response = httpx2.post(f"{server.base_url}/v1/completions", json=GREEDY | more, timeout=20.0)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def assert_at_rest(server: LiveServer) -> None:
    """Nothing runs, nothing waits, no page belongs to anybody, the bookkeeping is right."""
    server.wait_idle()
    wait_until(lambda: server.server.runner.stats().kv_pages_used == 0)
    server.server.llm.engine.check_integrity()
    assert server.server.buffered_nbytes == 0


def leave_somewhere(port: int, rng: random.Random) -> None:
    """Send a request, stream or plain, and be gone: before, in, or after the answer."""
    n = rng.choice([1, 1, 2])
    document = LONG | {"stream": rng.random() < 0.7, "n": n, "max_tokens": rng.choice([1, 5, 300])}
    request = post("/v1/completions", document)
    phase = rng.randrange(5)
    connection = connect(port)
    with contextlib.suppress(OSError):
        if phase == 0:
            connection.sendall(request[: rng.randrange(len(request))])
        else:
            connection.sendall(request)
        if phase >= 2:
            connection.settimeout(rng.choice([0.001, 0.01, 0.05]))
            for _ in range(rng.randrange(1, 8)):
                connection.recv(rng.choice([10, 4096]))
    if rng.random() < 0.7:
        kill(connection)
    else:
        connection.close()


@pytest.mark.slow
def test_two_hundred_disconnects_leave_nothing_behind(server: LiveServer) -> None:
    expected = text_of(server)
    n_files = len(server.server.exchanges)
    rng = random.Random(7)
    with ThreadPoolExecutor(8) as pool:
        for future in [
            pool.submit(leave_somewhere, server.port, random.Random(rng.random()))
            for _ in range(200)
        ]:
            future.result()
    assert_at_rest(server)
    assert len(server.server.exchanges) == n_files == 0
    assert text_of(server) == expected


def test_a_few_disconnects_leave_nothing_behind(server: LiveServer) -> None:
    expected = text_of(server)
    rng = random.Random(3)
    for _ in range(12):
        leave_somewhere(server.port, rng)
    assert_at_rest(server)
    assert text_of(server) == expected


@pytest.mark.parametrize("is_stream", [True, False])
def test_leaving_cancels_the_work(server: LiveServer, is_stream: bool) -> None:
    """The request would run for very long: it has not been finished, it has been ended."""
    stats = server.server.runner.stats
    connection = connect(server.port)
    connection.sendall(post("/v1/completions", LONG | {"stream": is_stream}))
    wait_until(lambda: stats().n_running == 1)
    kill(connection)
    assert_at_rest(server)
    finished = server.server.metrics.finished
    assert finished["cancelled"] == 1
    assert finished["length"] == finished["stop"] == 0


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_left(tiny_llm: LLM) -> None:
    """Its stream fills what the system buffers; other streams go on meanwhile."""
    with live(tiny_llm, slow_reader_s=0.5) as server, ExitStack() as stack:
        connection = stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        # Wide log-probabilities: each token is some kilobytes.
        wide = LONG | {"stream": True, "logprobs": 20, "n": 8, "max_tokens": 480}
        before = resident_nbytes()
        connection.sendall(post("/v1/completions", wide))
        wait_until(lambda: server.server.runner.stats().n_running > 0)
        assert text_of(server)
        assert_at_rest(server)
        assert resident_nbytes() - before < 64 * MIB
        taken = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                taken += part
        assert b"data: " in taken
        assert b"[DONE]" not in taken


@pytest.mark.slow
def test_ten_thousand_requests_are_answered_or_refused(tiny_llm: LLM) -> None:
    """Far more than can be queued: each gets 200 or 429 with Retry-After, and memory is flat."""
    with live(tiny_llm, parallel=1, max_queue=2) as server:
        counts: dict[int, int] = {}
        lock = threading.Lock()

        def storm(n: int) -> None:
            for _ in range(n):
                answer = exchange(server.port, post("/v1/completions", LONG | {"max_tokens": 64}))
                with lock:
                    counts[status(answer)] = counts.get(status(answer), 0) + 1
                if status(answer) == 429:
                    assert b"retry-after: 1\r\n" in answer.lower()
                    assert b"retry-after-ms: " in answer.lower()
                    assert b'"code":"queue_full"' in answer

        def wave(n: int) -> int:
            with ThreadPoolExecutor(50) as pool:
                for future in [pool.submit(storm, n // 50) for _ in range(50)]:
                    future.result()
            return resident_nbytes()

        after_first = wave(2_000)
        after_all = wave(8_000)
        assert set(counts) == {200, 429}
        assert sum(counts.values()) == 10_000
        assert after_all - after_first < 48 * MIB
        assert_at_rest(server)
        assert text_of(server)


def test_what_is_more_than_the_queue_is_refused_at_once(tiny_llm: LLM) -> None:
    with live(tiny_llm, parallel=1, max_queue=1) as server:
        connections = [connect(server.port) for _ in range(8)]
        for connection in connections:
            connection.sendall(post("/v1/completions", LONG))
        refused = 0
        for connection in connections:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                answer = read_response(connection)
                if status(answer) == 429:
                    refused += 1
                    assert b"x-should-retry: false" not in answer
        assert refused >= 5
        for connection in connections:
            kill(connection)
        assert_at_rest(server)


def test_one_key_cannot_take_every_place(tiny_llm: LLM) -> None:
    keys = ("key-of-somebody", "key-of-another")
    with live(tiny_llm, api_keys=keys, max_per_key=2) as server:

        def ask(key: str) -> socket.socket:
            connection = connect(server.port)
            connection.sendall(post("/v1/completions", LONG, f"Authorization: Bearer {key}"))
            return connection

        greedy = [ask(keys[0]) for _ in range(2)]
        wait_until(lambda: len(server.server.exchanges) == 2)
        with ask(keys[0]) as third:
            assert status(read_response(third)) == 429
        with ask(keys[1]) as other:
            wait_until(lambda: len(server.server.exchanges) == 3)
            kill(other)
        for connection in greedy:
            kill(connection)
        assert_at_rest(server)


def test_a_request_that_takes_too_long_is_ended(tiny_llm: LLM) -> None:
    with live(tiny_llm, request_timeout_s=0.05) as server:
        slow = LONG | {"n": 8, "max_tokens": 480, "logprobs": 5}
        plain = exchange(server.port, post("/v1/completions", slow))
        assert status(plain) == 503
        assert b'"code":"request_timeout"' in plain
        assert b"x-should-retry: false" in plain
        with connect(server.port) as connection:
            connection.sendall(post("/v1/completions", slow | {"stream": True}))
            answer = b""
            while b"data: [DONE]" not in answer:
                part = connection.recv(65536)
                assert part
                answer += part
        assert status(answer) == 200
        assert b'data: {"error":{"message":"the request took longer' in answer
        assert_at_rest(server)


def test_an_idle_stream_is_kept_alive_with_comments(tiny_llm: LLM) -> None:
    """A queue of one: the second stream waits, and says so."""
    with live(tiny_llm, sse_keep_alive_s=0.05) as server:
        engine = server.server.llm.engine
        engine.pause()  # nothing is computed now
        try:
            with connect(server.port) as connection:
                connection.sendall(post("/v1/completions", LONG | {"stream": True}))
                answer = b""
                while answer.count(b": keep-alive\n\n") < 3:
                    answer += connection.recv(4096)
        finally:
            engine.resume()
        assert_at_rest(server)
