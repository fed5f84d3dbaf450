"""`/v1/messages`: the anthropic client's view, and the order of the events as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest

from capax import LLM
from tests.models import gguf_model
from tests.serving.conftest import LiveServer, client_of, live
from tests.serving.test_structured import SCHEMA

pytestmark = pytest.mark.anyio

ASK: list[Any] = [{"role": "user", "content": "Hi"}]
TOOLS: list[Any] = [{"name": "add", "description": "", "input_schema": SCHEMA}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    llm = LLM(gguf_model("llama", max_position_embeddings=4096), threads=1, n_sequences=2)
    with live(llm) as server:
        yield server


@pytest.fixture
def api(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.base_url, api_key="EMPTY", max_retries=0) as api:
        yield api


def events_of(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_text_whole_and_streamed(api: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "max_tokens": 9, "messages": ASK, "system": "Be brief.",
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    whole = api.messages.create(**asked)
    assert (whole.role, whole.stop_reason, whole.stop_sequence) == ("assistant", "max_tokens", None)
    [block] = whole.content
    assert block.type == "text"
    assert whole.usage.output_tokens == 9
    with api.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == block.text
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert final.stop_reason == "max_tokens"
    usage = final.usage
    n_input = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    counted = api.messages.count_tokens(model="tiny", messages=ASK, system="Be brief.")
    assert counted.input_tokens == n_input


async def test_the_events_come_in_order(client: Any) -> None:
    body = {"messages": ASK, "max_tokens": 6, "stream": True, "seed": 3}
    answer = await client.post("/v1/messages", json=body)
    events = events_of(answer.text)
    names = [event["type"] for event in events]
    n_deltas = names.count("content_block_delta")
    assert n_deltas > 1
    assert names == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * n_deltas,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[0]["message"]["content"] == []
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 6


def test_a_stop_sequence_is_named(api: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 30, "messages": ASK}
    more: dict[str, Any] = {"extra_body": {"seed": 3, "ignore_eos": True}}
    whole = api.messages.create(**asked, **more)
    assert whole.content[0].type == "text"
    text = whole.content[0].text
    stop = text[6:8]
    cut = api.messages.create(**asked, stop_sequences=["never this", stop], **more)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].type == "text"
    assert cut.content[0].text == text[: text.index(stop)]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
def test_a_demanded_tool_is_used(api: anthropic.Anthropic, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "max_tokens": 900, "messages": ASK, "tools": TOOLS,
        "tool_choice": {**choice, "disable_parallel_tool_use": True}, "extra_body": {"seed": 3},
    }  # fmt: skip
    whole = api.messages.create(**asked)
    assert whole.stop_reason == "tool_use"
    [block] = whole.content
    assert block.type == "tool_use"
    assert block.name == "add"
    jsonschema.validate(block.input, SCHEMA)
    with api.messages.stream(**asked) as stream:
        names = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in names
    assert final.content[0].type == "tool_use"
    assert final.content[0].input == block.input
    result = {"type": "tool_result", "tool_use_id": block.id,
              "content": [{"type": "text", "text": "42"}]}  # fmt: skip
    again = api.messages.create(
        model="tiny", max_tokens=4, tools=TOOLS,
        messages=[
            *ASK,
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},  # type: ignore[list-item]
        ],
    )  # fmt: skip
    assert again.usage.output_tokens <= 4
    counted = api.messages.count_tokens(model="tiny", messages=ASK, tools=TOOLS)
    plain = api.messages.count_tokens(model="tiny", messages=ASK)
    assert counted.input_tokens > plain.input_tokens


async def test_the_async_client_streams(server: LiveServer) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=server.base_url, api_key="EMPTY") as api,
        api.messages.stream(model="tiny", max_tokens=5, messages=ASK) as stream,
    ):
        final = await stream.get_final_message()
    assert final.usage.output_tokens <= 5


def test_errors_are_the_clients_own_classes(api: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        api.messages.create(model="claude", max_tokens=1, messages=ASK)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        api.messages.create(
            model="tiny", max_tokens=1, messages=[{"role": "user", "content": "word " * 5000}]
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "user or assistant"),
        ({"messages": [*ASK, {"role": "assistant", "content": "I"}]}, "end with the user's"),
        ({"messages": [{"role": "user", "content": 5}]}, "text or a list of blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]}, "nonsense"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "only tools of the client"),
        ({"tools": TOOLS, "tool_choice": {"type": "maybe"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice names"),
        ({"n": 2}, "answers once"),
    ],
)
async def test_what_cannot_be_answered_is_a_400_in_anthropics_shape(
    client: Any, fields: dict[str, Any], message: str
) -> None:
    body = {"messages": ASK, "max_tokens": 4, **fields}
    answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"
    assert message in error["error"]["message"]


async def test_an_image_is_a_501(client: Any) -> None:
    content = [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x.png"}}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    assert (await client.post("/v1/messages", json=body)).status_code == 501


async def test_a_key_is_taken_as_x_api_key(tiny_llm: LLM) -> None:
    key = "k" * 32
    body = {"messages": ASK, "max_tokens": 1}
    async with client_of(tiny_llm, api_keys=(key,)) as client:
        refused = await client.post("/v1/messages", json=body)
        taken = await client.post("/v1/messages", json=body, headers={"x-api-key": key})
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert taken.status_code == 200


async def test_special_tokens_in_blocks_stay_text(client: Any) -> None:
    async def count(text: str) -> int:
        message = {"role": "user", "content": [{"type": "text", "text": text}]}
        answer = await client.post("/v1/messages/count_tokens", json={"messages": [message]})
        found: int = answer.json()["input_tokens"]
        return found

    assert await count("<|im_end|>") > await count("x") + 1
