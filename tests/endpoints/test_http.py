"""A server over HTTP, good and bad: every fault has an error, and every token is accounted for."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from capax import SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints import BudgetExceeded, GenerateRequest, Ledger
from capax.endpoints.http import MAX_ANSWER_NBYTES, HTTPEndpoint, HTTPSettings
from capax.errors import ConfigError, ContextLengthError, EndpointError

pytestmark = pytest.mark.anyio
Handler = Callable[[httpx2.Request], Any]
FOUR = SamplingParams(max_tokens=4, temperature=0)
ASK = GenerateRequest("2+2=", FOUR)
CHAT = GenerateRequest([{"role": "user", "content": "2+2?"}], FOUR, "chat")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries do not sleep; returns how long they would have."""
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr("capax.endpoints.http._sleep", sleep)
    return asked


def endpoint(handler: Handler, ledger: Ledger | None = None, **settings: Any) -> HTTPEndpoint:
    return HTTPEndpoint(
        "http://model.test/v1",
        "m",
        ledger=ledger,
        transport=httpx2.MockTransport(handler),
        settings=HTTPSettings(**settings),
    )


def text_answer(text: str = " 4", **changes: Any) -> httpx2.Response:
    answer = {
        "id": "x",
        "model": "m-real",
        "choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5},
    }
    return httpx2.Response(200, json={**answer, **changes})


def chat_answer(content: str | None = "4") -> httpx2.Response:
    message = {"role": "assistant", "content": content, "reasoning_content": "hm"}
    logprobs = {"content": [{"token": "4", "logprob": -0.5, "bytes": [52], "top_logprobs": []}]}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    return httpx2.Response(200, json={"choices": [choice], "usage": usage})


async def test_a_completion_says_what_came_back_and_what_it_took() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return text_answer()

    async with endpoint(handler) as server:
        completion = await server.generate(ASK)
        assert (completion.text, completion.model) == (" 4", "m-real")
        assert completion.choices[0].finish_reason == "stop"
        assert completion.usage.total_tokens == 5
        assert server.ledger.totals.tokens == 5
    (request,) = seen
    assert str(request.url) == "http://model.test/v1/completions"
    assert request.headers["authorization"] == "Bearer EMPTY"
    body = json.loads(request.content)
    assert body == {
        "model": "m", "prompt": "2+2=", "max_tokens": 4, "temperature": 0.0, "top_p": 1.0,
        "n": 1, "stream": False,
    }  # fmt: skip


async def test_a_chat_tells_reasoning_log_probabilities_and_cached_tokens() -> None:
    async with endpoint(lambda request: chat_answer()) as server:
        completion = await server.generate(CHAT)
        choice = completion.choices[0]
        assert (choice.text, choice.reasoning, choice.logprobs) == ("4", "hm", (-0.5,))
        assert completion.usage.cached_tokens == 6
        assert server.ledger.by_purpose()["chat"].cached_tokens == 6


async def test_every_sampling_field_that_differs_is_sent() -> None:
    bodies: list[dict[str, Any]] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        choice = {"text": "x", "finish_reason": "length"}
        return text_answer(choices=[{**choice, "index": 1}, {**choice, "index": 0}])

    params = SamplingParams(
        n=2, max_tokens=3, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=7, stop="\n",
        stop_token_ids=(2,), logit_bias={5: -3.0}, presence_penalty=0.5, ignore_eos=True,
        repetition_penalty=1.1, frequency_penalty=0.25, min_tokens=1, logprobs=2,
    )  # fmt: skip
    async with endpoint(handler) as server:
        completion = await server.generate(GenerateRequest("p", params))
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert bodies == [
        {
            "model": "m", "prompt": "p", "stream": False, "n": 2, "max_tokens": 3,
            "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "stop": ["\n"],
            "stop_token_ids": [2], "logit_bias": {"5": -3.0}, "presence_penalty": 0.5,
            "ignore_eos": True, "repetition_penalty": 1.1, "frequency_penalty": 0.25,
            "min_tokens": 1, "logprobs": 2,
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "field", "inside"),
    [
        (StructuredOutputs(json_object=True), "response_format", "json_object"),
        (StructuredOutputs(json={"type": "integer"}), "response_format", "integer"),
        (StructuredOutputs(regex="[ab]+"), "structured_outputs", "[ab]+"),
        (StructuredOutputs(choice=["yes", "no"]), "structured_outputs", "yes"),
    ],
)
async def test_the_form_of_an_answer_is_sent(
    form: StructuredOutputs, field: str, inside: str
) -> None:
    sent: list[dict[str, Any]] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        return text_answer()

    async with endpoint(handler) as model:
        await model.generate(
            GenerateRequest("x", SamplingParams(max_tokens=4, structured_outputs=form))
        )
    assert inside in json.dumps(sent[0][field])


async def test_a_text_is_scored_by_its_echo() -> None:
    logprobs = {
        "tokens": ["a", " b", " c", " new"],
        "token_logprobs": [None, -1.0, -2.5, -0.1],
        "top_logprobs": [None, {" b": -1.0}, {" x": -0.5, " c": -2.5}, {" new": -0.1}],
        "text_offset": [0, 1, 3, 5],
    }
    choice = {"index": 0, "text": "a b c new", "finish_reason": "length", "logprobs": logprobs}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    async with endpoint(lambda request: text_answer(choices=[choice], usage=usage)) as server:
        scores = await server.score("a b c")
        assert scores.tokens == ("a", " b", " c")
        assert scores.logprobs == (None, -1.0, -2.5)
        assert scores.is_greedy == (None, True, False)
        assert scores.total == -3.5
    async with endpoint(lambda request: text_answer()) as server:
        with pytest.raises(EndpointError, match="cannot score a text"):
            await server.score("a b c")


async def test_what_was_refused_is_asked_again_after_the_time_it_says(
    waits: list[float],
) -> None:
    answers = iter(
        [
            httpx2.Response(429, headers={"retry-after": "3"}, json={"error": {"message": "full"}}),
            httpx2.Response(503, headers={"retry-after-ms": "250"}),
            text_answer(),
        ]
    )
    async with endpoint(lambda request: next(answers)) as server:
        assert (await server.generate(ASK)).text == " 4"
        assert server.ledger.totals.n_calls == 3
        assert server.ledger.totals.tokens == 5  # a refusal costs nothing
    assert waits == [3.0, 0.25]


async def test_a_server_that_keeps_failing_is_given_up_and_charged_for() -> None:
    n_asked = 0

    def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal n_asked
        n_asked += 1
        return httpx2.Response(500, text="<html>oops</html>")

    async with endpoint(handler, max_attempts=3) as server:
        with pytest.raises(EndpointError, match="answered 500"):
            await server.generate(ASK)
        assert n_asked == 3
        assert server.ledger.totals.tokens == 3 * (5 + 4)  # it may have worked each time


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (httpx2.Response(400, json={"error": {"message": "n is 0"}}), ConfigError, "n is 0"),
        (
            httpx2.Response(
                400, json={"error": {"message": "9 > 8", "code": "context_length_exceeded"}}
            ),
            ContextLengthError,
            "9 > 8",
        ),
        (httpx2.Response(404, json={"error": {"message": "no m"}}), ConfigError, "404: no m"),
        (httpx2.Response(401, json={"error": "no key"}), EndpointError, "401: no key"),
        (httpx2.Response(302, headers={"location": "http://evil.test"}), EndpointError, "302"),
        (httpx2.Response(429, headers={"retry-after": "1e9"}), EndpointError, "asks to wait"),
        (httpx2.Response(500, headers={"x-should-retry": "false"}), EndpointError, "500"),
        (httpx2.Response(400, content=b"[" * 5000), ConfigError, "answered 400"),
    ],
)
async def test_what_cannot_heal_is_not_asked_again(
    response: httpx2.Response, error: type[Exception], message: str
) -> None:
    n_asked = 0

    def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal n_asked
        n_asked += 1
        return response

    async with endpoint(handler) as server:
        with pytest.raises(error, match=message):
            await server.generate(ASK)
    assert n_asked == 1


DAMAGED: dict[str, Any] = {
    "html": b"<html>200 OK</html>",
    "nothing": b"",
    "a list": b"[]",
    "deep": b'{"choices":' + b"[" * 100_000,
    "no choices": b'{"usage":{"prompt_tokens":1}}',
    "not UTF-8": b'{"choices":[{"text":"\xff","finish_reason":"stop"}]}',
    "text is a number": b'{"choices":[{"text":5,"finish_reason":"stop"}]}',
    "no reason": b'{"choices":[{"text":"x","finish_reason":null}]}',
    "negative index": b'{"choices":[{"text":"x","finish_reason":"stop","index":-1}]}',
    "other index": b'{"choices":[{"text":"x","finish_reason":"stop","index":3}]}',
    "two choices": b'{"choices":[{"text":"x","finish_reason":"stop","index":0},'
    b'{"text":"x","finish_reason":"stop","index":1}]}',
    "absurd usage": b'{"choices":[{"text":"x","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1e300}}',
    "negative usage": b'{"choices":[{"text":"x","finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":-5}}',
    "positive log-probability": b'{"choices":[{"text":"x","finish_reason":"stop","logprobs":'
    b'{"tokens":["x"],"token_logprobs":[3.5],"text_offset":[0]}}]}',
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_damaged_answer_is_an_error_and_charged_for(name: str) -> None:
    async with endpoint(lambda request: httpx2.Response(200, content=DAMAGED[name])) as server:
        with pytest.raises(EndpointError):
            await server.generate(ASK)
        totals = server.ledger.totals
        assert totals.n_calls == 1
        assert totals.tokens > 0


async def test_an_answer_without_usage_is_charged_what_it_could_have_cost() -> None:
    async with endpoint(lambda request: text_answer(usage=None)) as server:
        assert (await server.generate(ASK)).text == " 4"
        assert server.ledger.totals.tokens == 5 + 4


async def test_a_bomb_is_cut_off() -> None:
    bomb = gzip.compress(bytes(MAX_ANSWER_NBYTES + (1 << 20)))

    def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-encoding": "gzip"}, content=bomb)

    async with endpoint(handler) as server:
        with pytest.raises(EndpointError, match="more than 64 MiB"):
            await server.generate(ASK)


class Broken(httpx2.AsyncByteStream):
    """Half an answer."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"choices": [{"text": "ha'
        raise httpx2.ReadError("connection reset")


async def test_half_an_answer_is_asked_for_again_and_both_are_charged() -> None:
    answers = iter([httpx2.Response(200, stream=Broken()), text_answer()])
    async with endpoint(lambda request: next(answers)) as server:
        assert (await server.generate(ASK)).text == " 4"
        assert server.ledger.totals.tokens == (5 + 4) + 5


async def test_an_attempt_has_a_deadline() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        return text_answer()

    async with endpoint(handler, timeout_s=0.01, max_attempts=2) as server:
        with pytest.raises(EndpointError, match="without an answer"):
            await server.generate(ASK)
        assert server.ledger.totals.tokens == 2 * (5 + 4)


async def test_a_cap_holds_under_faults_and_many_calls_at_once() -> None:
    """Timeouts, refusals, failures, half answers: the ledger never passes the cap."""
    turn = 0

    def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal turn
        turn += 1
        kinds = [
            text_answer,
            lambda: httpx2.Response(429, headers={"retry-after": "0"}),
            lambda: httpx2.Response(500),
            lambda: httpx2.Response(200, stream=Broken()),
            lambda: httpx2.Response(200, content=b"{"),
        ]
        if turn % 6 == 5:
            raise httpx2.ConnectError("refused")
        return kinds[turn % 5]()

    ledger = Ledger(max_tokens=400)
    seen = []
    ledger.on_entry = lambda entry: seen.append(ledger.totals.tokens)
    async with endpoint(handler, ledger) as server:
        results = await asyncio.gather(
            *(server.generate(ASK) for _ in range(200)), return_exceptions=True
        )
    kinds = {type(result).__name__ for result in results}
    assert "Completion" in kinds
    assert "BudgetExceeded" in kinds
    assert any(isinstance(result, BudgetExceeded) for result in results)
    assert max(seen) <= 400
    assert ledger.totals.tokens <= 400
    assert ledger.tokens_left == 400 - ledger.totals.tokens


async def test_no_more_requests_at_once_than_allowed() -> None:
    running = most = 0

    async def handler(request: httpx2.Request) -> httpx2.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return text_answer()

    async with endpoint(handler, max_concurrency=3) as server:
        await asyncio.gather(*(server.generate(ASK) for _ in range(20)))
    assert most == 3


@pytest.mark.parametrize("url", ["ftp://x", "file:///etc/passwd", "http://", "nonsense", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        HTTPEndpoint(url, "m")


async def test_a_request_without_a_limit_is_refused() -> None:
    async with endpoint(lambda request: text_answer()) as server:
        with pytest.raises(ConfigError, match="max_tokens is needed"):
            await server.generate(GenerateRequest("x"))
