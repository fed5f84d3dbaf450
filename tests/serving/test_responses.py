"""`/v1/responses`: the openai client's view, and the order of the events as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from capax import LLM
from tests.models import gguf_model
from tests.serving.conftest import LiveServer, live
from tests.serving.test_structured import SCHEMA

pytestmark = pytest.mark.anyio

TOOLS = [{"type": "function", "name": "add", "description": "", "parameters": SCHEMA}]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    llm = LLM(gguf_model("llama", max_position_embeddings=4096), threads=1, n_sequences=2)
    with live(llm) as server:
        yield server


@pytest.fixture
def api(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="EMPTY", max_retries=0) as api:
        yield api


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; the name of each is also in its data."""
    events = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def stream_of(client: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"input": "Hi", "stream": True, "seed": 3, **fields}
    answer = await client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


def test_text_whole_and_streamed_is_that_of_a_chat(api: openai.OpenAI) -> None:
    chat = api.chat.completions.create(
        model="tiny", max_tokens=9, temperature=0,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    )  # fmt: skip
    asked: dict[str, Any] = {
        "model": "tiny", "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 9,
        "temperature": 0,
    }  # fmt: skip
    whole = api.responses.create(**asked)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == 9
    events = list(api.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert "".join(deltas) == last.response.output_text == whole.output_text


async def test_the_events_of_a_text_come_in_order(client: Any) -> None:
    events = await stream_of(client, max_output_tokens=6)
    names = [event["type"].removeprefix("response.") for event in events]
    n_deltas = names.count("output_text.delta")
    assert n_deltas > 1
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * n_deltas,
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    text = "".join(event["delta"] for event in events if "delta" in event)
    [item] = events[-1]["response"]["output"]
    assert item["content"][0]["text"] == text
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}


async def test_an_answer_in_form_completes(client: Any) -> None:
    events = await stream_of(
        client,
        max_output_tokens=400,
        text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}},
    )
    assert events[-1]["type"] == "response.completed"
    response = events[-1]["response"]
    jsonschema.validate(json.loads(response["output"][0]["content"][0]["text"]), SCHEMA)
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}


def test_the_client_parses_an_answer_into_a_model(api: openai.OpenAI) -> None:
    class City(BaseModel):
        people: int

    answer = api.responses.parse(model="tiny", input="Hi", text_format=City, temperature=0.5)
    assert isinstance(answer.output_parsed, City)


async def test_the_events_of_a_call_come_in_order(client: Any, api: openai.OpenAI) -> None:
    with api.responses.stream(
        model="tiny", input="Hi", tools=TOOLS, tool_choice="required", max_output_tokens=900,
        parallel_tool_calls=False, extra_body={"seed": 3},
    ) as stream:  # type: ignore[call-overload]  # fmt: skip
        names = [event.type.removeprefix("response.") for event in stream]
        final = stream.get_final_response()
    n_deltas = names.count("function_call_arguments.delta")
    assert n_deltas > 1
    assert names == [
        "created", "in_progress", "output_item.added",
        *["function_call_arguments.delta"] * n_deltas,
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    [call] = final.output
    assert call.type == "function_call"
    assert call.name == "add"
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    again = api.responses.create(
        model="tiny", tools=TOOLS, max_output_tokens=4,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            call.model_dump(exclude_none=True, exclude={"parsed_arguments"}),
            {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
        ],
    )  # type: ignore[call-overload]  # fmt: skip
    assert again.output_text is not None
    assert again.usage is not None
    assert final.usage is not None
    assert again.usage.input_tokens > final.usage.input_tokens


async def test_input_tokens_are_counted(client: Any) -> None:
    body = {"input": "Hi", "instructions": "Be brief."}
    counted = await client.post("/v1/responses/input_tokens", json=body)
    answer = await client.post("/v1/responses", json={**body, "max_output_tokens": 1})
    assert counted.json()["input_tokens"] == answer.json()["usage"]["input_tokens"]


async def test_nothing_is_stored_and_it_is_said(client: Any) -> None:
    answer = await client.post(
        "/v1/responses", json={"input": "Hi", "store": True, "max_output_tokens": 1}
    )
    assert answer.json()["store"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 1e9}, "temperature"),
    ],
)
async def test_what_cannot_be_answered_is_a_400(
    client: Any, fields: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        body = {"input": "Hi", **fields, "stream": stream}
        answer = await client.post("/v1/responses", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
