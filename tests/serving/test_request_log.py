"""The request log: right counts and times, nothing of what was said, and serving whatever comes."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capax import LLM
from capax.errors import ConfigError
from capax.measuring.served_log import MAX_LINE_NBYTES, ServedRequest, read_log
from capax.serving.request_log import RequestLog
from tests.serving.conftest import client_of, live, running_client, wait_until
from tests.serving.raw import connect, post

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "canary-in-the-prompt"}], "max_tokens": 4}
EXACT = {"ignore_eos": True, "temperature": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def lines(path: Path) -> list[ServedRequest]:
    found = list(read_log(path))
    assert None not in found
    return [request for request in found if request is not None]


async def test_a_line_has_the_counts_of_the_answer(tiny_llm: LLM, path: Path) -> None:
    async with client_of(tiny_llm, request_log=path) as client:
        answer = (await client.post("/v1/chat/completions", json={**CHAT, **EXACT})).json()
    [line] = lines(path)
    assert (line.route, line.model, line.status) == ("/v1/chat/completions", "tiny", 200)
    assert (line.calls, line.choices, line.finish_reason) == (1, 1, "length")
    usage = answer["usage"]
    assert line.prompt_tokens == usage["prompt_tokens"]
    assert line.cached_tokens == usage["prompt_tokens_details"]["cached_tokens"]
    assert line.completion_tokens == usage["completion_tokens"] == 4
    assert line.prefill_seconds > 0
    assert line.decode_seconds > 0
    assert line.seconds > line.queue_seconds + line.engine_seconds


async def test_streams_several_prompts_and_cached_ones(tiny_llm: LLM, path: Path) -> None:
    long = list(range(5, 205))
    bodies: list[dict[str, Any]] = [
        {"prompt": long, "max_tokens": 3, "stream": True},
        {"prompt": long, "max_tokens": 3},
        {"prompt": [[9, 8], [7, 6, 5]], "max_tokens": 2, "n": 3},
    ]
    async with client_of(tiny_llm, request_log=path) as client:
        for body in bodies:
            response = await client.post("/v1/completions", json={**body, **EXACT})
            assert response.status_code == 200
    first, again, several = lines(path)
    assert (first.prompt_tokens, first.completion_tokens, first.cached_tokens) == (200, 3, 0)
    assert (again.prompt_tokens, again.cached_tokens) == (200, 199)
    assert (several.calls, several.choices) == (2, 6)
    assert (several.prompt_tokens, several.completion_tokens) == (5, 12)


async def test_what_failed_and_what_called_no_model(tiny_llm: LLM, path: Path) -> None:
    async with client_of(tiny_llm, request_log=path) as client:
        await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 10**6})
        await client.post("/tokenize", json={"prompt": "canary-in-the-prompt"})
        await client.post("/canary-in-the-path", json={})
        await client.get("/v1/models")
    wrong, counted = lines(path)
    assert (wrong.status, wrong.calls, wrong.finish_reason) == (400, 0, "")
    assert (counted.route, counted.status, counted.calls) == ("/tokenize", 200, 0)
    assert "canary" not in path.read_text()


async def test_strategies_are_one_line_of_all_their_calls(tiny_llm: LLM, path: Path) -> None:
    body = {**CHAT, "max_tokens": 3, "strategy": "majority:n=3"}
    async with client_of(tiny_llm, request_log=path) as client:
        answer = (await client.post("/v1/chat/completions", json=body)).json()
    [line] = lines(path)
    assert line.choices == 3
    assert line.completion_tokens == answer["usage"]["completion_tokens"]


async def test_nothing_said_and_no_key_is_in_it(tiny_llm: LLM, path: Path) -> None:
    keys = {"api_keys": ("key-of-somebody",), "request_log": path}
    async with client_of(tiny_llm, **keys) as client:
        headers = {"Authorization": "Bearer key-of-somebody", "x-request-id": "canary-id"}
        body = {**CHAT, "user": "canary-user", "cache_salt": "canary-salt"}
        answer = (await client.post("/v1/chat/completions", json=body, headers=headers)).json()
        headers["Authorization"] = "Bearer wrong-key"
        await client.post("/v1/chat/completions", json=body, headers=headers)
    text = path.read_text()
    assert len(lines(path)) == 1  # strangers cannot fill the disk
    for secret in ("canary", "key-of-somebody", "wrong-key", "127.0.0.1", "testclient"):
        assert secret not in text
    said = answer["choices"][0]["message"]["content"]
    assert len(said) < 4 or json.dumps(said)[1:-1] not in text


def test_a_client_that_leaves_is_in_it(tiny_llm: LLM, path: Path) -> None:
    with live(tiny_llm, request_log=path) as server:
        body = {"prompt": "zebra", "max_tokens": 400, "stream": True, **EXACT}
        with connect(server.port) as connection:
            connection.sendall(post("/v1/completions", body))
            assert connection.recv(1)
        wait_until(lambda: len(path.read_bytes().splitlines()) == 1)
    [line] = lines(path)
    assert (line.finish_reason, line.calls) == ("cancelled", 1)
    assert line.completion_tokens < 400


async def test_a_full_disk_stops_nothing(
    tiny_llm: LLM, path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    body = {"prompt": "zebra", "max_tokens": 1}
    write = os.write
    async with running_client(tiny_llm, request_log=path) as (client, server):

        async def ask() -> None:
            assert (await client.post("/v1/completions", json=body)).status_code == 200

        log = server.request_log
        assert log is not None
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
        await ask()  # cut off
        monkeypatch.setattr(os, "write", full_disk)
        await ask()
        await ask()
        assert log.n_lost == 3
        assert len(said) == 1
        assert "serving goes on" in said[0]
        assert "capax_request_log_lost_total" in (await client.get("/metrics")).text
        monkeypatch.undo()
        await ask()
        await ask()
    cut_off, *rest = list(read_log(path))
    assert cut_off is None
    assert [r.completion_tokens for r in rest if r is not None] == [1, 1]
    assert log.n_lost == 3


def full_disk(*_: object) -> int:
    raise OSError(28, "No space left on device")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the server's own log says of errors."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, logger = Handler(logging.ERROR), logging.getLogger("capax.serving")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_the_file_is_the_operators_alone_and_only_grows(path: Path) -> None:
    log = RequestLog(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log.write(example())
    log.close()
    with path.open("ab") as file:
        file.write(b'{"time": "2026')  # a process that was killed
    log = RequestLog(path)
    log.write(example())
    log.close()
    assert [r is not None for r in read_log(path)] == [True, False, True]
    log.write(example())  # after the end: lost, not raised
    assert log.n_lost == 1


def test_files_that_can_be_no_log(tmp_path: Path) -> None:
    shown = tmp_path / "shown.jsonl"
    shown.touch(0o644)
    shown.chmod(0o644)
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "elsewhere")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (shown, "chmod 600"),
        (link, "cannot open"),
        (pipe, "no regular file"),
        (tmp_path / "nowhere" / "x", "No such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            RequestLog(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_line_is_bounded_whatever_is_in_it() -> None:
    long = example(route="/" + "\U0001f600" * 5000, model="\x1b[31m\n" * 5000, prompt_tokens=10**9)
    line = long.to_line()
    assert len(line) <= MAX_LINE_NBYTES
    assert line.count(b"\n") == 1
    assert b"\x1b" not in line
    assert ServedRequest.from_line(line).prompt_tokens == 10**9


def example(**fields: Any) -> ServedRequest:
    values: dict[str, Any] = {
        "time": 1.8e9, "route": "/v1/completions", "model": "tiny", "status": 200, "calls": 1,
        "choices": 1, "prompt_tokens": 16, "cached_tokens": 0, "completion_tokens": 4,
        "seconds": 0.5, "queue_seconds": 0.1, "prefill_seconds": 0.2, "decode_seconds": 0.1,
        "finish_reason": "stop",
    }  # fmt: skip
    return ServedRequest(**values | fields)
