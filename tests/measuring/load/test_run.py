"""Streams are timed and counted, failures are outcomes, and waiting is not left out."""

from __future__ import annotations

import asyncio
import json
import math

import numpy as np
import pytest

from capax.errors import EndpointError
from capax.measuring.load.http import Client
from capax.measuring.load.request import Outcome, Target, body_of
from capax.measuring.load.run import Load, run_load, wait_ready
from capax.measuring.load.workload import Planned, plan_load, random_lengths
from tests.measuring.load.scripted import chunked, completion_events, models, plain, server

pytestmark = pytest.mark.anyio
TARGET = Target("openai", "/v1/completions", "m", timeout_s=10.0)
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def requests(n: int, spacing_s: float = 0.0) -> list[Planned]:
    return plan_load(random_lengths(n, 0, 5, 8), np.arange(n) * spacing_s, 0)


async def load_of(raw: bytes, n: int = 1, target: Target = TARGET) -> list[Outcome]:
    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if b"chunked" in raw and not raw.endswith(b"\r\n0\r\n\r\n"):
            raise ConnectionError

    async with server(reply) as url, Client(url) as client:
        return (await run_load(client, target, requests(n))).outcomes


async def test_a_stream_is_counted_by_the_server_and_timed_by_its_pieces() -> None:
    texts = ["Gr", "ü", "ße", "!"]
    for raw in (
        chunked(completion_events(texts, n_prompt=9)),
        chunked([b"".join(completion_events(texts, n_prompt=9))]),
        plain(b"".join(completion_events(texts, n_prompt=9))),
    ):
        [outcome] = await load_of(raw)
        assert outcome.is_ok
        assert (outcome.text, outcome.n_tokens, outcome.n_prompt) == ("Grüße!", 4, 9)
        assert len(outcome.gaps_s) == 3
        assert 0 < outcome.ttft_s <= outcome.latency_s
        assert outcome.ttft_s + sum(outcome.gaps_s) == pytest.approx(outcome.latency_s)
        assert outcome.tpot_s == pytest.approx(sum(outcome.gaps_s) / 3)


async def test_pieces_of_several_tokens_count_as_the_server_says() -> None:
    events = completion_events(["one two", " three"])
    events[2] = events[2].replace(b'"completion_tokens": 2', b'"completion_tokens": 3')
    [outcome] = await load_of(chunked(events))
    assert (outcome.n_tokens, len(outcome.gaps_s)) == (3, 1)


async def test_chats_and_thinking_are_text() -> None:
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "a"}]
    events = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
    raw = chunked([*(f"data: {e}\n\n".encode() for e in events), DONE])
    [outcome] = await load_of(raw, target=TARGET._replace(backend="openai-chat"))
    assert (outcome.text, outcome.n_tokens) == ("hma", 2)


FAILURES = {
    "an error": (plain(b'{"error": {"message": "no\\nroom"}}', status="429 Too Many"), "HTTP 429"),
    "an error in the stream": (
        chunked([*completion_events(["a"])[:1], b'data: {"error": {"message": "boom"}}\n\n', DONE]),
        "boom",
    ),
    "an end without DONE": (chunked(completion_events(["a"])[:-1]), r"without \[DONE\]"),
    "a stream broken off": (chunked(completion_events(["a"]))[:-25], "ends early|a chunk"),
    "no text": (chunked([DONE]), "no text"),
    "events that are no JSON": (chunked([b"data: {\n\n"]), "not what OpenAI's protocol has"),
    "events of another shape": (chunked([b'data: {"choices": 5}\n\n']), "not what OpenAI"),
    "bytes that are no text": (chunked([b'data: {"choices": "\xff"}\n\n']), "not what OpenAI"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_failures_are_outcomes_that_say_why(kind: str) -> None:
    raw, message = FAILURES[kind]
    outcomes = await load_of(raw, n=2)
    for outcome in outcomes:
        assert not outcome.is_ok
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(outcome.error)
        assert "\n" not in outcome.error


async def test_a_server_that_stalls_meets_the_deadline() -> None:
    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(completion_events(["a"]))[:-30])
        await asyncio.Event().wait()

    async with server(reply) as url, Client(url) as client:
        load = await run_load(client, TARGET._replace(timeout_s=0.05), requests(3))
    assert [outcome.error for outcome in load.outcomes] == ["no end within 0.05 s"] * 3


async def test_one_bad_answer_leaves_the_others_alone() -> None:
    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        if body["prompt"].startswith("2 "):
            raise ConnectionError
        writer.write(chunked(completion_events(["a", "b"])))

    async with server(reply) as url, Client(url) as client:
        load = await run_load(client, TARGET, requests(5))
    assert [outcome.is_ok for outcome in load.outcomes] == [True, True, False, True, True]


class Gate:
    """A server that answers nobody before `n_first` requests are there at a time."""

    def __init__(self, n_first: int) -> None:
        self.n_now = self.n_most = 0
        self._n_first = n_first
        self._is_open = asyncio.Event()

    async def reply(self, _: bytes, writer: asyncio.StreamWriter) -> None:
        self.n_now += 1
        self.n_most = max(self.n_most, self.n_now)
        if self.n_most >= self._n_first:
            self._is_open.set()
        await self._is_open.wait()
        self.n_now -= 1
        writer.write(chunked(completion_events(["a", "b"])))


async def run_gate(
    n: int, spacing_s: float, concurrency: int | None, n_first: int = 1
) -> tuple[Load, Gate]:
    gate = Gate(n_first)
    async with server(gate.reply) as url, Client(url) as client:
        load = await run_load(client, TARGET, requests(n, spacing_s), max_concurrency=concurrency)
    assert all(outcome.is_ok for outcome in load.outcomes)
    return load, gate


async def test_requests_are_sent_whether_or_not_those_before_have_ended() -> None:
    _, gate = await run_gate(12, 1e-4, None, n_first=12)  # else it would wait for ever
    assert gate.n_most == 12


async def test_at_a_rate_a_request_held_back_has_waited_since_it_was_due() -> None:
    """One at a time: each ends after the one before, and all were due almost at once."""
    load, gate = await run_gate(5, 1e-5, 1)
    assert gate.n_most == 1
    ends = [o.start_s + o.latency_s for o in load.outcomes]
    assert [o.start_s for o in load.outcomes] == [i * 1e-5 for i in range(5)]
    assert ends == sorted(ends)
    for before, after in zip(load.outcomes, load.outcomes[1:], strict=False):
        assert after.start_s + after.ttft_s > before.start_s + before.latency_s
        assert after.ttft_s > before.ttft_s  # the queue is in the times


async def test_a_closed_loop_begins_the_time_when_it_sends() -> None:
    load, gate = await run_gate(6, 0.0, 2, n_first=2)
    assert gate.n_most == 2
    starts = [o.start_s for o in load.outcomes]
    ends = sorted(o.start_s + o.latency_s for o in load.outcomes)
    assert starts[2] > ends[0] - 1e-3
    assert sum(s < ends[0] for s in starts) == 2
    assert 0 < load.cpu_share < 1.5


async def test_waiting_for_the_server_names_its_model_or_the_reason() -> None:
    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        assert request.startswith(b"GET /v1/models ")
        writer.write(models("a-model"))

    async with server(reply) as url, Client(url) as client:
        assert await wait_ready(client, 5.0) == "a-model"
    with pytest.raises(EndpointError, match=r"not ready after 0\.1 s: cannot connect"):
        async with Client(url) as client:
            await wait_ready(client, 0.1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (plain(b"{}"), "not a list of models"),
        (plain(b"[" * 100_000), "not a list of models"),
        (plain(b'{"data": []}'), "not a list"),
        (plain(b"no", status="401 X"), "answers 401: no"),
    ],
)
async def test_what_is_no_list_of_models_is_said(raw: bytes, message: str) -> None:
    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    async with server(reply) as url, Client(url) as client:
        with pytest.raises(EndpointError, match=message):
            await wait_ready(client, 0.01)


def test_bodies_ask_for_streams_with_usage() -> None:
    planned = Planned(0, 0.0, "a b", 2, 7)
    body = json.loads(body_of(TARGET, planned))
    assert body == {
        "model": "m", "stream": True, "stream_options": {"include_usage": True},
        "prompt": "a b", "max_tokens": 7, "temperature": 0.0,
    }  # fmt: skip
    chat = Target("openai-chat", "/x", "m", None, ignore_eos=True, extra=(("seed", 3),))
    body = json.loads(body_of(chat, planned))
    assert body["messages"] == [{"role": "user", "content": "a b"}]
    assert (body["ignore_eos"], body["seed"]) == (True, 3)
    assert "temperature" not in body
    assert math.isclose(body["max_completion_tokens"], 7)
