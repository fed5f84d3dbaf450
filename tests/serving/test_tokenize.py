"""/tokenize, /detokenize, /apply-template and /tokenizer_info."""

from __future__ import annotations

import httpx2
import pytest

from capax import LLM

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "What is rain?"}]


async def test_tokens_are_the_tokenizers(client: httpx2.AsyncClient, tiny_llm: LLM) -> None:
    text = "rain → 火山"
    answer = (
        await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})
    ).json()
    ids = tiny_llm.tokenizer.encode(text)
    assert answer == {
        "count": len(ids),
        "max_model_len": 512,
        "tokens": ids,
        "token_strs": [tiny_llm.tokenizer.token_text(i) for i in ids],
    }
    assert (await client.post("/tokenize", json={"content": text})).json()["tokens"] == ids
    back = (await client.post("/detokenize", json={"tokens": ids})).json()
    assert back["prompt"] == back["content"] == text


async def test_messages_are_counted_as_the_chat_counts_them(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    answer = (await client.post("/tokenize", json={"messages": MESSAGES})).json()
    assert answer["tokens"] == tiny_llm.chat_ids(MESSAGES)
    counted = await client.post("/v1/chat/completions/input_tokens", json={"messages": MESSAGES})
    assert counted.json()["input_tokens"] == answer["count"]
    rendered = (await client.post("/apply-template", json={"messages": MESSAGES})).json()["prompt"]
    assert rendered == "<|im_start|>user\nWhat is rain?<|im_end|>\n<|im_start|>assistant\n"
    whole = (await client.post("/tokenize", json={"prompt": rendered})).json()
    assert whole["tokens"] == answer["tokens"]


async def test_control_tokens_are_recognised_unless_told_otherwise(
    client: httpx2.AsyncClient,
) -> None:
    body = {"prompt": "<|im_end|>", "add_special_tokens": False}
    assert (await client.post("/tokenize", json=body)).json()["tokens"] == [2]
    body["parse_special"] = False
    assert (await client.post("/tokenize", json=body)).json()["count"] > 1


async def test_texts_longer_than_the_context_are_counted(client: httpx2.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"prompt": "7 " * 5_000})).json()
    assert answer["count"] > answer["max_model_len"]
    back = (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json()
    assert back["prompt"] == "7 " * 5_000


async def test_a_text_of_too_many_tokens_is_refused(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "7 " * 20_000
    messages = [{"role": "user", "content": text}]
    counted = "/v1/chat/completions/input_tokens"
    assert (await client.post(counted, json={"messages": messages})).json()["input_tokens"] > 20_000
    monkeypatch.setattr("capax.serving.prompts.MAX_COUNTED", 1024)
    for key, value in (("prompt", text), ("content", text), ("messages", messages)):
        response = await client.post("/tokenize", json={key: value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == key
        assert "more than 1024 tokens" in response.json()["error"]["message"]


async def test_tokenizer_info_has_what_harnesses_read(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    info = (await client.get("/tokenizer_info")).json()
    assert info["eos_token"] == "<|im_end|>"
    assert info["bos_token"] == "<|endoftext|>"
    assert info["vocab_size"] == tiny_llm.config.vocab_size
    assert "add_generation_prompt" in info["chat_template"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "content": "a"}),
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "ab"}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": [320]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**30]}),
        ("/apply-template", {"messages": MESSAGES, "chat_template": "x"}),
    ],
)
async def test_bad_bodies_are_400(client: httpx2.AsyncClient, path: str, body: object) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
