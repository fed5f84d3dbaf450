"""Chats answered by strategies: the answer, what it took, caps, refusals and streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from capax import LLM
from tests.serving.conftest import MODEL_NAME, LiveServer, client_of, running_client
from tests.serving.test_chat import MESSAGES, chat, chunks_of, refused

pytestmark = pytest.mark.anyio


async def test_a_strategy_of_one_is_the_model(client: httpx2.AsyncClient) -> None:
    plain = await chat(client)
    answer = await chat(client, strategy="single")
    assert answer["choices"] == plain["choices"]
    assert answer["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


async def test_usage_sums_all_calls(client: httpx2.AsyncClient) -> None:
    single = await chat(client, strategy="single")
    answer = await chat(client, strategy="revise:n=3", ignore_eos=True)
    n_prompt = single["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] > 3 * n_prompt
    assert answer["usage"]["completion_tokens"] == 24
    spent = answer["capax"]["strategy"]
    assert [(part["purpose"], part["calls"]) for part in spent] == [("answer", 1), ("revise", 2)]
    assert sum(part["completion_tokens"] for part in spent) == 24
    assert answer["capax"]["is_complete"] is True


@pytest.mark.parametrize("strategy", ["majority:n=12", "best:n=4", "mixture", "revise:n=4,k=3"])
@pytest.mark.parametrize("cap", [60, 120, 250])
async def test_a_cap_on_all_tokens_holds(
    client: httpx2.AsyncClient, strategy: str, cap: int
) -> None:
    answer = await chat(client, strategy=strategy, max_total_tokens=cap, ignore_eos=True)
    assert answer["usage"]["total_tokens"] <= cap
    assert answer["choices"][0]["message"]["content"]


async def test_a_cap_below_one_answer_is_a_400(client: httpx2.AsyncClient) -> None:
    error = await refused(client, strategy="majority:n=2", max_total_tokens=3, max_tokens=4)
    assert "budget" in error["message"]


async def test_the_servers_strategy_answers_and_is_told(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, strategy="majority:n=3") as client:
        answer = await chat(client, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 24
        assert answer["capax"]["strategy"][0]["method"] == "majority:n=3"
        models = (await client.get("/v1/models")).json()
        assert models["data"][0]["meta"]["strategy"] == "majority:n=3"
        metrics = (await client.get("/metrics")).text
        assert "capax_strategy_answers_total" in metrics
        assert (await chat(client, strategy="single"))["usage"]["completion_tokens"] <= 8


async def test_the_servers_strategy_leaves_what_it_cannot_serve_to_the_model(
    tiny_llm: LLM,
) -> None:
    async with client_of(tiny_llm, strategy="majority:n=3") as client:
        answer = await chat(client, n=2)
        assert len(answer["choices"]) == 2
        assert answer["capax"]["strategy"][0]["method"] == "autoregressive"


async def test_the_model_name_may_carry_a_strategy(client: httpx2.AsyncClient) -> None:
    answer = await chat(client, model=f"{MODEL_NAME}@majority:n=2", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 16
    await refused(client, 404, model="other@majority:n=2")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"strategy": "oracle"}, "strategy"),
        ({"strategy": "majority:n=0"}, "strategy"),
        ({"strategy": "majority", "n": 2}, "n"),
        ({"strategy": "majority", "logprobs": True}, "logprobs"),
        ({"max_total_tokens": 100}, "max_total_tokens"),
        ({"strategy": "majority", "max_total_tokens": 0}, "max_total_tokens"),
    ],
)
async def test_what_cannot_be_is_refused(
    client: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    assert (await refused(client, **body))["param"] == param


async def test_a_stream_brings_the_chosen_answer(client: httpx2.AsyncClient) -> None:
    whole = await chat(client, strategy="majority:n=4")
    chunks = await chunks_of(
        client, strategy="majority:n=4", stream_options={"include_usage": True}
    )
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] is not None


async def test_every_candidate_has_the_form_asked_for(client: httpx2.AsyncClient) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
    answer = await chat(client, strategy="majority:n=3", response_format=form)
    assert json.loads(answer["choices"][0]["message"]["content"]) in (1, 2)


async def test_more_choices_than_run_at_a_time_come_in_parts(tiny_llm: LLM) -> None:
    most = tiny_llm.plan.logit_rows
    async with client_of(tiny_llm) as client:
        answer = await chat(
            client, strategy=f"majority:n={most + 3}", ignore_eos=True, max_tokens=2
        )
        assert answer["usage"]["completion_tokens"] == 2 * (most + 3)
        assert answer["capax"]["strategy"][0]["calls"] == 2


async def test_a_client_that_leaves_ends_every_inner_call(tiny_llm: LLM) -> None:
    async with running_client(tiny_llm) as (client, server):
        body = {
            "messages": MESSAGES, "strategy": "majority:n=6,stop=first", "max_tokens": 400,
            "ignore_eos": True,
        }  # fmt: skip
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while server.runner.stats().n_running == 0:
            await asyncio.sleep(0.005)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        for _ in range(1000):
            stats = server.runner.stats()
            if stats.n_running == stats.n_waiting == 0:
                break
            await asyncio.sleep(0.005)
        assert (stats.n_running, stats.n_waiting) == (0, 0)


async def test_the_openai_client_needs_nothing_special(live_server: LiveServer) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{live_server.port}/v1", api_key="none", max_retries=0
    ) as client:
        answer = await client.chat.completions.create(
            model=MODEL_NAME, messages=[{"role": "user", "content": "2+2?"}], max_tokens=4,
            extra_body={"strategy": "majority:n=3"},
        )  # fmt: skip
        assert answer.choices[0].message.content is not None
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 12


# --- the other protocols -------------------------------------------------------------------------

QUESTION = [{"role": "user", "content": "Which is it?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": QUESTION, "max_output_tokens": 8},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 8},
}


def text_of(path: str, answer: dict[str, Any]) -> str:
    if path == "/v1/messages":
        return "".join(block["text"] for block in answer["content"])
    return "".join(part["text"] for item in answer["output"] for part in item["content"])


async def ask(client: httpx2.AsyncClient, path: str, **fields: Any) -> httpx2.Response:
    body = {"model": MODEL_NAME, "seed": 1, "temperature": 0.8, **BODIES[path], **fields}
    return await client.post(path, json=body)


@pytest.mark.parametrize("path", BODIES)
async def test_every_protocol_has_the_chats_strategies(
    client: httpx2.AsyncClient, path: str
) -> None:
    asked = {
        "seed": 1,
        "temperature": 0.8,
        "max_tokens": 8,
        "messages": QUESTION,
        "strategy": "majority:n=3",
    }
    expected = await chat(client, **asked, ignore_eos=True)
    answer = (await ask(client, path, strategy="majority:n=3", ignore_eos=True)).json()
    assert text_of(path, answer) == expected["choices"][0]["message"]["content"]
    assert answer["usage"]["output_tokens"] == 24 == expected["usage"]["completion_tokens"]
    if path == "/v1/responses":
        assert answer["capax"]["strategy"] == expected["capax"]["strategy"]
        assert answer["usage"]["total_tokens"] == expected["usage"]["total_tokens"]


@pytest.mark.parametrize("path", BODIES)
async def test_streams_of_every_protocol_bring_the_chosen_answer(
    client: httpx2.AsyncClient, path: str
) -> None:
    whole = (await ask(client, path, strategy="best:n=2")).json()
    streamed = await ask(client, path, strategy="best:n=2", stream=True)
    events = [
        json.loads(line.removeprefix("data: "))
        for line in streamed.text.splitlines()
        if line.startswith("data: {")
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("_text.delta")]
    blocks = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(deltas or blocks) == text_of(path, whole)
    last = events[-1 if path == "/v1/responses" else -2]
    usage = last["response"]["usage"] if path == "/v1/responses" else last["usage"]
    assert usage["output_tokens"] == whole["usage"]["output_tokens"]


@pytest.mark.parametrize("path", BODIES)
async def test_a_server_of_a_strategy_answers_every_protocol_by_it(
    tiny_llm: LLM, path: str
) -> None:
    tool = {"name": "f", "parameters": {"type": "object"}, "input_schema": {"type": "object"}}
    tools = [tool if path == "/v1/messages" else {"type": "function", **tool}]
    async with client_of(tiny_llm, strategy="majority:n=3") as client:
        assert (await ask(client, path, ignore_eos=True)).json()["usage"]["output_tokens"] == 24
        alone = (await ask(client, path, ignore_eos=True, tools=tools)).json()
        assert alone["usage"]["output_tokens"] == 8  # no strategy calls tools
        refusal = await ask(client, path, tools=tools, strategy="majority:n=3")
        assert refusal.status_code == 400
        assert "tools" in refusal.json()["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"strategy": "oracle"}, 400),
        ({"max_total_tokens": 100}, 400),
        ({"strategy": "majority", "max_total_tokens": 3}, 400),
        ({"strategy": "majority", "n": 2}, 400),
        ({"model": "other@majority:n=2"}, 404),
        ({"model": "bon-other"}, 404),
    ],
)
async def test_what_cannot_be_is_refused_everywhere(
    client: httpx2.AsyncClient, path: str, fields: dict[str, Any], status: int
) -> None:
    assert (await ask(client, path, **fields)).status_code == status


@pytest.mark.parametrize("path", BODIES)
async def test_a_cap_holds_in_every_protocol(client: httpx2.AsyncClient, path: str) -> None:
    answer = await ask(client, path, strategy="majority:n=12", max_total_tokens=90, ignore_eos=True)
    used = answer.json()["usage"]
    n_prompt = used["input_tokens"] + used.get("cache_read_input_tokens", 0)
    assert 0 < n_prompt + used["output_tokens"] <= 90


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (f"self_consistency-{MODEL_NAME}", "majority"),
        (f"majority_voting-{MODEL_NAME}", "majority"),
        (f"bon-{MODEL_NAME}", "best"),
        (f"moa-{MODEL_NAME}", "mixture"),
    ],
)
async def test_names_of_models_as_optillm_writes_them(
    client: httpx2.AsyncClient, model: str, spec: str
) -> None:
    expected = await chat(client, strategy=spec)
    answer = await chat(client, model=model)
    assert answer["choices"] == expected["choices"]
    assert answer["capax"]["strategy"] == expected["capax"]["strategy"]


async def test_a_served_name_wins_over_a_prefix(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, model_name="bon-tiny") as client:
        answer = await chat(client, model="bon-tiny")
        assert answer["capax"]["strategy"][0]["method"] == "autoregressive"
        assert (await chat(client, model="bon-bon-tiny"))["capax"]["strategy"][0]["method"] != (
            "autoregressive"
        )
    async with client_of(tiny_llm) as client:
        for unknown in (f"mcts-{MODEL_NAME}", f"moa&bon-{MODEL_NAME}", "moa-", "-"):
            await refused(client, 404, model=unknown)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/input_tokens", {"messages": QUESTION}),
        ("/v1/responses/input_tokens", {"input": QUESTION}),
        ("/v1/messages/count_tokens", {"messages": QUESTION}),
    ],
)
async def test_tokens_are_counted_for_a_name_with_a_strategy(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    plain = (await client.post(path, json={"model": MODEL_NAME, **body})).json()
    for name in (f"{MODEL_NAME}@majority:n=2", f"moa-{MODEL_NAME}"):
        counted = await client.post(path, json={"model": name, **body})
        assert counted.json() == plain
    missing = await client.post(path, json={"model": "other@majority", **body})
    assert missing.status_code == 404
