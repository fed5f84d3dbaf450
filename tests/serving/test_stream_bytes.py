"""The bytes of a stream, line by line, as they leave the socket."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from capax import LLM
from capax.engine.outputs import StreamPiece
from tests.serving.conftest import LiveServer, live

CHAT = {
    "messages": [{"role": "user", "content": "What is rain?"}],
    "max_tokens": 12,
    "seed": 11,
    "temperature": 1.5,
    "stream": True,
}
EVENT = re.compile(rb"data: (\{.*\}|\[DONE\])")


def raw_post(
    server: LiveServer,
    path: str,
    body: dict[str, Any],
    watch: Callable[[bytes], None] | None = None,
) -> tuple[bytes, bytes]:
    """Send one request by hand; return the response's head and its body without chunking.

    `watch` sees all that was received, each time something was.
    """
    payload = json.dumps(body).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    ).encode() + payload
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        for part in iter(lambda: connection.recv(65536), b""):
            received += part
            if watch is not None:
                watch(received)
    head, _, rest = received.partition(b"\r\n\r\n")
    is_chunked = b"transfer-encoding: chunked" in head.lower()
    return head, dechunked(rest) if is_chunked else rest


def dechunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            break
        parts.append(data[:n])
        assert data[n : n + 2] == b"\r\n"
        data = data[n + 2 :]
    return b"".join(parts)


def test_every_line_of_a_chat_stream(live_server: LiveServer) -> None:
    body = {**CHAT, "stream_options": {"include_usage": True}}
    head, stream = raw_post(live_server, "/v1/chat/completions", body)
    assert head.startswith(b"HTTP/1.1 200 ")
    headers = head.lower()
    assert b"content-type: text/event-stream" in headers
    assert b"cache-control: no-cache" in headers
    assert b"x-accel-buffering: no" in headers
    assert b"x-request-id: " in headers
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b"\r" not in stream
    events = stream.split(b"\n\n")
    assert events.pop() == b""
    assert all(EVENT.fullmatch(event) for event in events)
    assert events.pop() == b"data: [DONE]"
    chunks = [json.loads(event[6:]) for event in events]
    envelope = ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert all(list(chunk)[:7] == envelope for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(re.fullmatch(r"chatcmpl-[0-9a-f]{24}", chunk["id"]) for chunk in chunks)
    assert all(isinstance(chunk["created"], int) for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert all(list(c) == ["index", "delta", "logprobs", "finish_reason"] for c in choices)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] in ("stop", "length")
    assert all(list(c["delta"]) == ["content"] and c["delta"]["content"] for c in choices[1:-1])
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_without_include_usage_no_chunk_speaks_of_it(live_server: LiveServer) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "rain", "max_tokens": 5, "stream": True}),
    ):
        _, stream = raw_post(live_server, path, body)
        assert b'"usage"' not in stream
        assert stream.count(b'"timings"') == 1


def test_characters_are_never_split(live_server: LiveServer, tiny_llm: LLM) -> None:
    # One token is one byte here, so each of these characters comes in several tokens.
    wanted = "é火🌧"
    ids = tiny_llm.tokenizer.encode(wanted)
    assert len(ids) == len(wanted.encode())
    _, stream = raw_post(
        live_server,
        "/v1/completions",
        {"prompt": ids, "max_tokens": 0, "echo": True, "stream": True},
    )
    assert wanted.encode() in stream
    bias = {str(token): 100 for token in ids}
    _, stream = raw_post(
        live_server,
        "/v1/completions",
        {"prompt": "a", "max_tokens": 40, "logit_bias": bias, "stream": True, "seed": 2},
    )
    stream.decode()  # whole characters or U+FFFD, never half of one
    texts = [
        json.loads(event[6:])["choices"][0]["text"]
        for event in stream.split(b"\n\n")
        if event.startswith(b"data: {")
    ]
    whole = tiny_llm.tokenizer.decode(
        raw_ids(live_server, {"prompt": "a", "max_tokens": 40, "logit_bias": bias, "seed": 2})
    )
    assert "".join(texts) == whole


def raw_ids(server: LiveServer, body: dict[str, Any]) -> list[int]:
    _, answer = raw_post(server, "/v1/completions", {**body, "return_token_ids": True})
    ids: list[int] = json.loads(answer)["choices"][0]["token_ids"]
    return ids


def test_text_is_escaped_as_json(live_server: LiveServer, tiny_llm: LLM) -> None:
    text = '"\\\n\u2028</script>\x00'
    ids = tiny_llm.tokenizer.encode(text)
    _, stream = raw_post(
        live_server,
        "/v1/completions",
        {"prompt": ids, "max_tokens": 0, "echo": True, "stream": True},
    )
    first = stream.split(b"\n\n")[0]
    assert json.loads(first[6:])["choices"][0]["text"] == text


class Held:
    """A stream that gives nothing before `may_go`."""

    def __init__(self, pieces: Any, may_go: threading.Event) -> None:
        self._pieces = pieces
        self._may_go = may_go

    def __aiter__(self) -> Held:
        return self

    async def __anext__(self) -> list[StreamPiece]:
        await asyncio.to_thread(self._may_go.wait, 20)
        pieces: list[StreamPiece] = await anext(self._pieces)
        return pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()


def test_a_comment_keeps_an_idle_stream_alive(tiny_llm: LLM) -> None:
    commented = threading.Event()

    def watch(received: bytes) -> None:
        if b": keep-alive\n\n" in received:
            commented.set()

    with live(tiny_llm, sse_keep_alive_s=0.01) as server:
        submit = server.server.stream
        server.server.stream = lambda *a, **k: Held(submit(*a, **k), commented)  # type: ignore[method-assign]
        _, stream = raw_post(server, "/v1/chat/completions", CHAT, watch)
    events = stream.split(b"\n\n")
    assert b": keep-alive" in events
    others = [event for event in events if event != b": keep-alive"]
    assert others.pop() == b""
    assert all(EVENT.fullmatch(event) for event in others)


class FailingAtTheSecond:
    """A stream whose second news is that the logits were not finite."""

    def __init__(self, pieces: Any) -> None:
        self._pieces = pieces
        self._n_read = 0

    def __aiter__(self) -> FailingAtTheSecond:
        return self

    async def __anext__(self) -> list[StreamPiece]:
        self._n_read += 1
        if self._n_read == 2:
            return [StreamPiece(0, "", finish_reason="error")]
        pieces: list[StreamPiece] = await anext(self._pieces)
        return pieces

    async def aclose(self) -> None:
        await self._pieces.aclose()


def test_an_error_in_mid_stream_is_an_event_and_then_done(tiny_llm: LLM) -> None:
    with live(tiny_llm) as server:
        submit = server.server.stream
        server.server.stream = lambda *a, **k: FailingAtTheSecond(submit(*a, **k))  # type: ignore[method-assign]
        head, stream = raw_post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 300})
        plain_head, answer = raw_post(
            server, "/v1/chat/completions", {**CHAT, "max_tokens": 300, "stream": False}
        )
        server.wait_idle()  # the work was taken back
    assert head.startswith(b"HTTP/1.1 200 ")
    events = stream.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    error = json.loads(events[-3][6:])["error"]
    assert error["type"] == "server_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert plain_head.startswith(b"HTTP/1.1 500 ")
    assert json.loads(answer)["error"] == error


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_a_stream(live_server: LiveServer) -> None:
    done = subprocess.run(
        ["curl", "--no-buffer", "--silent", "--show-error", "--fail", "--noproxy", "*",
         f"{live_server.base_url}/v1/chat/completions",
         "--header", "Content-Type: application/json", "--data", json.dumps(CHAT)],
        capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(b"data: [DONE]\n\n")
