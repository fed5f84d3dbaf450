"""Bodies of the two other protocols whose values have the wrong kind: refused, never a failure."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.serving.conftest import MODEL_NAME

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "a"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
ODD: list[Any] = [5, 1.5, True, [], {}, ["x"], {"a": []}, [[]], "\u0000", None]

MESSAGES_BODIES = [
    {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": []}},
    {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": {"a": 1}}},
    {"messages": [{"role": "user", "content": [{"type": ["x"]}]}]},
    {"messages": [{"role": "user", "content": [{"type": {"a": []}, "text": "b"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]},
    {"messages": [USER], "system": [{"type": ["text"], "text": "a"}]},
]
RESPONSES_BODIES = [
    {"input": [{"type": "reasoning", "content": 5}, USER]},
    {"input": [{"type": ["message"], **USER}]},
    {"input": [{"type": {"a": 1}}]},
    {"input": [{"role": "user", "content": [{"type": ["input_text"], "text": "a"}]}]},
    {"input": [USER], "tools": [{"type": ["function"]}]},
    {"input": [USER], "text": {"format": {"type": []}}},
    {"input": [USER], "reasoning": {"effort": []}},
]


@pytest.mark.parametrize("body", MESSAGES_BODIES)
async def test_odd_messages_are_refused(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/messages", json={"model": MODEL_NAME, "max_tokens": 2, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("body", RESPONSES_BODIES)
async def test_odd_responses_are_refused(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    asked = {"model": MODEL_NAME, "max_output_tokens": 2, **body}
    answer = await client.post("/v1/responses", json=asked)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/messages", "tool_choice"), ("/v1/messages", "thinking"),
        ("/v1/messages", "system"), ("/v1/messages", "tools"), ("/v1/messages", "metadata"),
        ("/v1/responses", "tool_choice"), ("/v1/responses", "reasoning"),
        ("/v1/responses", "text"), ("/v1/responses", "tools"), ("/v1/responses", "include"),
        ("/v1/responses", "conversation"), ("/v1/responses", "truncation"),
    ],
)  # fmt: skip
async def test_no_value_of_a_field_is_a_server_error(
    client: httpx2.AsyncClient, path: str, name: str, odd: Any
) -> None:
    base: dict[str, Any] = {"model": MODEL_NAME, name: odd}
    if path == "/v1/messages":
        base |= {"messages": [USER], "max_tokens": 1}
    else:
        base |= {"input": [USER], "max_output_tokens": 1}
    answer = await client.post(path, json=base)
    assert answer.status_code in (200, 400, 501), answer.text
