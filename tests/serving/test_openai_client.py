"""What the `openai` package makes of the server: the client most people have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from capax import LLM, SamplingParams
from tests.serving.conftest import LiveServer, live

MESSAGES = [{"role": "user", "content": "What is rain?"}]


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_server.base_url}/v1", api_key="EMPTY") as client:
        yield client


def test_a_chat(client: openai.OpenAI, tiny_llm: LLM) -> None:
    expected = tiny_llm.chat(MESSAGES, SamplingParams(max_tokens=8, seed=3))
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=8, seed=3
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.outputs[0].finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens_details is not None


def test_a_chat_stream_with_usage(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts, usage = ["", ""], None
    for chunk in client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_the_clients_own_stream_helper(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "seed": 3}
    text = client.chat.completions.create(**asked).choices[0].message.content
    asked["stop"] = text[4:6]  # the helper takes an answer that was cut short for an error
    with client.chat.completions.stream(**asked, logprobs=True, top_logprobs=2) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or []) == whole.usage.completion_tokens


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, seed=3, logprobs=True, top_logprobs=4
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [4] * len(logprobs.content)


def test_completions(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": ["rain", "sea"], "max_tokens": 8, "seed": 3, "n": 2}
    whole = client.completions.create(**asked, logprobs=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].logprobs is not None
    texts = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_stop_and_seed(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 24, "seed": 3, "temperature": 2}
    first = client.chat.completions.create(**asked).choices[0].message.content
    assert first is not None
    assert client.chat.completions.create(**asked).choices[0].message.content == first
    stopped = client.chat.completions.create(**asked, stop=first[4:6]).choices[0]
    assert stopped.message.content == first[: first.index(first[4:6])]
    assert stopped.finish_reason == "stop"


def test_extra_fields_go_in_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=8,
        extra_body={"top_k": 1, "min_tokens": 8, "return_token_ids": True},
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert len((answer.choices[0].model_extra or {})["token_ids"]) == 8


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_error_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature is 101") as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=101)
    assert bad.value.param == "temperature"
    assert bad.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="maximum context length") as long:
        client.completions.create(model="tiny", prompt=[5] * 600)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert missing.value.code == "model_not_found"


def test_a_full_queue_is_a_rate_limit_error(tiny_llm: LLM) -> None:
    with (
        live(tiny_llm, max_queue=0) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as full,
    ):
        client.completions.create(model="tiny", prompt=["a"] * 64, n=4)
    assert full.value.code == "queue_full"
    assert "retry-after" in full.value.response.headers


def test_the_async_client_at_once_says_what_it_says_alone(live_server: LiveServer) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=16, seed=seed, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def both() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(
            base_url=f"{live_server.base_url}/v1", api_key="EMPTY"
        ) as client:
            alone = [await ask(client, seed) for seed in range(12)]
            together = await asyncio.gather(*(ask(client, seed) for seed in range(12)))
            return alone, list(together)

    alone, together = asyncio.run(both())
    assert together == alone
    assert len(set(alone)) > 1


def test_a_client_that_leaves_ends_the_work(client: openai.OpenAI, live_server: LiveServer) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    live_server.wait_idle()


@pytest.mark.slow  # loads the real model
def test_the_real_model(smollm2: Path) -> None:
    llm = LLM(smollm2, ctx_size=1024, n_sequences=4)
    messages = [{"role": "user", "content": "What is gravity?"}]
    ask = SamplingParams(max_tokens=24, temperature=0)
    chat, story = llm.chat(messages, ask), llm.generate("The capital of France is", ask)
    noise = llm.generate("Once upon a time", SamplingParams(max_tokens=24, seed=5, n=4))
    with (
        live(llm) as server,
        openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="EMPTY") as client,
    ):
        greedy = {"model": "tiny", "max_tokens": 24, "temperature": 0, "stream": True}
        heard = client.chat.completions.create(messages=messages, **greedy)
        said = "".join(c.choices[0].delta.content or "" for c in heard)
        assert said == chat.text
        heard = client.completions.create(prompt=story.prompt_token_ids, **greedy)
        assert "".join(c.choices[0].text for c in heard) == story.text
        several = client.completions.create(
            model="tiny", prompt="Once upon a time", max_tokens=24, seed=5, n=4, logprobs=1
        )
        assert [c.text for c in several.choices] == [c.text for c in noise.outputs]
        for choice, made in zip(several.choices, noise.outputs, strict=True):
            assert sum(choice.logprobs.token_logprobs) == made.cumulative_logprob
            text = "".join(t for t in choice.logprobs.tokens if not t.startswith("<|"))
            assert text == choice.text
