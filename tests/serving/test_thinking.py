"""Thinking over HTTP: a template that opens it, and a model that never closes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from capax import LLM
from tests.models import CHAT_TEMPLATE, gguf_model
from tests.serving.conftest import client_of

pytestmark = pytest.mark.anyio

THINKING = (
    CHAT_TEMPLATE.replace("{% endif %}", "")
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    + "{% else %}<think>\n{% endif %}{% endif %}"
)
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def thinker() -> LLM:
    llm = LLM(gguf_model("llama"), threads=1, n_sequences=2)
    object.__setattr__(llm.file, "chat_template", THINKING)
    return llm


@pytest.fixture
async def client(thinker: LLM, anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(thinker) as client:
        yield client


async def chat(client: Any, **fields: Any) -> Any:
    answer = await client.post("/v1/chat/completions", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer


async def test_what_is_thought_is_reasoning_and_counted(client: Any) -> None:
    whole = (await chat(client, ignore_eos=True)).json()
    message = whole["choices"][0]["message"]
    assert message["content"] == ""
    assert message["reasoning_content"] == message["reasoning"] != ""
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 12}
    stream = await chat(client, ignore_eos=True, stream=True)
    chunks = [json.loads(line[6:]) for line in stream.text.split("\n\n")[:-2]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning"]
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize(
    "fields", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]
)
async def test_thinking_can_be_left_out(client: Any, fields: dict[str, Any]) -> None:
    message = (await chat(client, ignore_eos=True, **fields)).json()["choices"][0]["message"]
    assert message["content"]
    assert "reasoning" not in message


async def test_a_form_waits_for_the_end_of_the_thinking(client: Any) -> None:
    """This model never ends it, so there is no answer, rather than one without the form."""
    [choice] = (await chat(client, guided_choice=["yes"])).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""
    said = await chat(client, guided_choice=["yes"], reasoning_effort="none")
    assert said.json()["choices"][0]["message"]["content"] == "yes"


async def test_unknown_template_options_are_refused(client: Any) -> None:
    body = {**BODY, "chat_template_kwargs": {"tools": 1}}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400


async def test_responses_and_messages_tell_the_thinking_apart(client: Any) -> None:
    body = {"input": "Hi", "max_output_tokens": 12, "seed": 3, "ignore_eos": True}
    response = (await client.post("/v1/responses", json=body)).json()
    [item] = response["output"]
    assert item["type"] == "reasoning"
    assert item["content"][0]["type"] == "reasoning_text"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 12}
    streamed = await client.post("/v1/responses", json={**body, "stream": True})
    names = [line for line in streamed.text.split("\n") if line.startswith("event: ")]
    assert "event: response.reasoning_text.delta" in names
    assert "event: response.reasoning_text.done" in names

    asked = {**BODY, "ignore_eos": True}
    message = (await client.post("/v1/messages", json=asked)).json()
    [block] = message["content"]
    assert block["type"] == "thinking"
    assert block["thinking"] == item["content"][0]["text"]
    off = {**asked, "thinking": {"type": "disabled"}}
    assert (await client.post("/v1/messages", json=off)).json()["content"][0]["type"] == "text"
