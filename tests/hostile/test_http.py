"""Connections and requests that mean harm, over plain sockets."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from capax import LLM
from capax.serving.launch import with_room_for_connections
from capax.serving.state import resident_nbytes
from tests.serving.conftest import LiveServer, live, tiny_config, wait_until
from tests.serving.raw import connect, error_of, exchange, post, read_response, status

HURRIED = {
    "header_timeout_s": 0.3,
    "body_timeout_s": 0.6,
    "keep_alive_s": 1.0,
    "max_body_nbytes": 1 << 20,
}
MIB = 1 << 20


@pytest.fixture(scope="module")
def hurried(tiny_llm: LLM) -> Iterator[LiveServer]:
    """A server with short deadlines."""
    with live(tiny_llm, **HURRIED) as server:
        yield server


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of some thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 4096:
        pytest.skip(f"this process may open {hard} files only")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def n_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_closed_in_time(connection: socket.socket) -> bool:
    connection.settimeout(20.0)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


def answers(server: LiveServer) -> bool:
    return httpx2.get(f"{server.base_url}/health").status_code == 200


def test_connections_that_say_nothing_are_closed_and_hold_nobody_up(hurried: LiveServer) -> None:
    before = n_open_files()
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(hurried.port)) for _ in range(200)]
        assert answers(hurried)
        assert all(is_closed_in_time(connection) for connection in silent)
    assert answers(hurried)
    wait_until(lambda: n_open_files() <= before)


@pytest.mark.slow
def test_a_thousand_silent_connections_are_let_go(tiny_llm: LLM, many_files: None) -> None:
    with live(tiny_llm, header_timeout_s=5.0) as server, ExitStack() as stack:
        before = resident_nbytes()
        silent = [stack.enter_context(connect(server.port)) for _ in range(1000)]
        assert all(answers(server) for _ in range(10))
        assert all(is_closed_in_time(connection) for connection in silent)
        assert resident_nbytes() - before < 60 * MIB


def test_headers_that_come_slowly_are_cut_off(hurried: LiveServer) -> None:
    with connect(hurried.port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                connection.sendall(b"X-A: b\r\n")  # a byte now and then does not help
                time.sleep(0.1)
        answer = read_response(connection)
    assert status(answer) in (0, 408)
    assert b"200 OK" not in answer


def test_a_body_that_comes_slowly_is_cut_off(hurried: LiveServer) -> None:
    head = post("/v1/completions", {"prompt": "x" * 1000})[:-900]
    with connect(hurried.port) as connection:
        connection.sendall(head)
        answer = read_response(connection)
    assert status(answer) == 408
    assert "took longer than 0.6 s" in error_of(answer)["message"]


@pytest.mark.slow
def test_a_body_below_the_least_rate_is_cut_off(tiny_llm: LLM) -> None:
    settings = {"body_timeout_s": 60.0, "min_body_rate": 1 << 20}
    with live(tiny_llm, **settings) as server, connect(server.port) as connection:
        connection.sendall(post("/v1/completions", {"prompt": "x" * 1000})[:-900])
        answer = read_response(connection)
    assert status(answer) == 408
    assert "slower than" in error_of(answer)["message"]


@pytest.mark.parametrize("framing", ["declared", "chunked", "lying"])
def test_a_hundred_mebibytes_are_refused_before_nine(live_server: LiveServer, framing: str) -> None:
    """The answer is there while the body is still on its way, and memory stays where it was."""
    before = resident_nbytes()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = {"declared": 100 * MIB, "lying": 100 * MIB, "chunked": None}[framing]
    head += (
        b"Content-Length: %d\r\n\r\n" % length if length else b"Transfer-Encoding: chunked\r\n\r\n"
    )
    n_sent = 0
    with connect(live_server.port) as connection:
        connection.sendall(head)
        part = b" " * MIB
        if framing == "chunked":
            part = b"%x\r\n" % MIB + part + b"\r\n"
        if framing != "declared":
            for _ in range(9):
                connection.sendall(part)
                n_sent += MIB
        answer = read_response(connection)
    assert status(answer) == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert n_sent <= 9 * MIB
    assert resident_nbytes() - before < 40 * MIB
    live_server.wait_idle()
    assert live_server.server.buffered_nbytes == 0


def test_a_client_that_sends_all_of_it_still_reads_the_answer(live_server: LiveServer) -> None:
    response = httpx2.post(
        f"{live_server.base_url}/v1/completions",
        content=b" " * (16 * MIB),
        headers={"Content-Type": "application/json"},
        timeout=20.0,
    )
    assert response.status_code == 413


MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
    b"Content-Length: 3\r\n\r\n{}x",
    "length and chunked": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length of words": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n",
    "an endless length": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    + b"9" * 40 + b"\r\n\r\n",
    "bad chunks": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a folded header": b"GET /health HTTP/1.1\r\nHost: localhost\r\n evil.com\r\n\r\n",
    "a header without name": b"GET /health HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    "nul in a header": b"GET /health HTTP/1.1\r\nHost: local\x00host\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_requests_are_refused(hurried: LiveServer, kind: str) -> None:
    answer = exchange(hurried.port, MALFORMED[kind])
    assert status(answer) in (400, 403, 408, 413), answer[:100]
    assert answers(hurried)


OVERSIZED = {
    "a giant header": b"X-A: " + b"a" * 40_000 + b"\r\n",
    "a header without end": b"X-A: " + b"a" * 1_000_000,
    "many headers": b"".join(b"X-%d: a\r\n" % i for i in range(200)),
    "many large headers": b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(50)),
}


@pytest.mark.parametrize("kind", OVERSIZED)
def test_heads_beyond_their_limits_are_refused(hurried: LiveServer, kind: str) -> None:
    before = resident_nbytes()
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + OVERSIZED[kind] + b"\r\n"
    with connect(hurried.port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
        answer = read_response(connection)
    assert status(answer) in (0, 431)
    assert b"200 OK" not in answer
    assert resident_nbytes() - before < 16 * MIB
    assert answers(hurried)


def test_a_url_beyond_its_limit_is_refused(hurried: LiveServer) -> None:
    answer = exchange(
        hurried.port, b"GET /health?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert status(answer) == 431


def test_connections_beyond_the_limit_get_503(tiny_llm: LLM) -> None:
    with live(tiny_llm, max_connections=4) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(server.port))
        answer = exchange(server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(answer) in (0, 503)
        assert b"200 OK" not in answer


def test_a_request_in_small_pieces_is_a_request(live_server: LiveServer) -> None:
    request = post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    parts = [request[i : i + 7] for i in range(0, len(request), 7)]
    assert status(exchange(live_server.port, *parts)) == 200


def test_requests_of_one_connection_are_answered_in_turn(live_server: LiveServer) -> None:
    with connect(live_server.port) as connection:
        for _ in range(3):
            connection.sendall(post("/v1/completions", {"prompt": "a", "max_tokens": 1}))
            assert status(read_response(connection)) == 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_request_before_the_answer_does_not_disturb_it(
    live_server: LiveServer, is_stream: bool
) -> None:
    """The first answer comes whole, and then the connection closes."""
    long = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": is_stream}
    with connect(live_server.port) as connection:
        connection.sendall(post("/v1/completions", long) + post("/v1/completions", long)[:40])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status(answer) == 200
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if is_stream else b"}")


def test_the_file_limit_is_raised_and_bounds_the_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        config = with_room_for_connections(tiny_config(max_connections=1000))
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised >= 256
        assert config.max_connections < raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
