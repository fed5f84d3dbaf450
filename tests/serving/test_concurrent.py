"""Requests at the same time say what they say alone, and nothing of each other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.serving.conftest import LiveServer

pytestmark = pytest.mark.anyio

WORDS = ["rain", "hill", "sea", "stone", "wind"]
SHARED = "It is said that in the old days "  # a prefix that some of them have in common


def request_number(i: int) -> tuple[str, dict[str, Any]]:
    """The i-th of many different requests: endpoint, streaming, n, logprobs, length, sampling."""
    prompt = (SHARED * (i % 3)) + f"{WORDS[i % 5]} {i}"
    body: dict[str, Any] = {
        "seed": i,
        "max_tokens": 4 + 3 * (i % 7),
        "n": 1 + i % 3,
        "temperature": 0.5 + (i % 4) / 2,
        "stream": i % 2 == 0,
        "ignore_eos": i % 5 == 0,
        "return_token_ids": True,
    }
    if i % 3 == 0:
        return "/v1/chat/completions", body | {
            "messages": [{"role": "user", "content": prompt}],
            "logprobs": True,
            "top_logprobs": i % 4,
        }
    return "/v1/completions", body | {"prompt": [prompt, prompt + "!"], "logprobs": i % 4}


async def ask(client: httpx2.AsyncClient, i: int) -> dict[int, dict[str, Any]]:
    """Return for each choice its tokens, text and log-probabilities."""
    path, body = request_number(i)
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    if body["stream"]:
        events = [event for event in response.text.split("\n\n") if event.startswith("data: {")]
        choices = [c for event in events for c in json.loads(event[6:])["choices"]]
    else:
        choices = response.json()["choices"]
    said: dict[int, dict[str, Any]] = {}
    for choice in choices:
        heard = said.setdefault(choice["index"], {"text": "", "ids": [], "logprobs": []})
        message = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        heard["text"] += message.get("content") or ""
        heard["ids"] += choice.get("token_ids") or []
        logprobs = choice["logprobs"] or {}
        heard["logprobs"] += logprobs.get("token_logprobs") or [
            entry["logprob"] for entry in logprobs.get("content") or []
        ]
    return said


async def test_together_they_say_what_they_say_alone(live_server: LiveServer) -> None:
    async with httpx2.AsyncClient(base_url=live_server.base_url, timeout=60) as client:
        alone = [await ask(client, i) for i in range(18)]
        for _ in range(2):  # the second time with their prefixes kept
            assert await asyncio.gather(*(ask(client, i) for i in range(18))) == alone
    assert len({json.dumps(said) for said in alone}) == 18
    assert all(heard["ids"] for said in alone for heard in said.values())
    assert all(len(h["ids"]) == len(h["logprobs"]) for said in alone for h in said.values())


async def test_streaming_changes_nothing(
    live_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx2.AsyncClient(base_url=live_server.base_url, timeout=60) as client:
        as_they_are = [await ask(client, i) for i in range(18)]
        ordinary = request_number

        def other(i: int) -> tuple[str, dict[str, Any]]:
            path, body = ordinary(i)
            return path, body | {"stream": not body["stream"]}

        monkeypatch.setitem(globals(), "request_number", other)
        assert [await ask(client, i) for i in range(18)] == as_they_are


async def test_a_prefix_is_not_shared_across_salts(live_server: LiveServer) -> None:
    prompt = "the wind over the hills and the rain " * 8

    async def cached(**body: Any) -> int:
        asked = {"prompt": prompt, "max_tokens": 1, **body}
        answer = (await client.post("/v1/completions", json=asked)).json()
        count: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (answer["capax"]["cache_miss_reason"] is None) == (count > 0)
        return count

    async with httpx2.AsyncClient(base_url=live_server.base_url, timeout=60) as client:
        assert await cached(cache_salt="a") == 0
        assert await cached(cache_salt="a") > 0
        assert await cached(cache_salt="b") == 0
        assert await cached(cache_prompt=False) == 0
        assert await cached(cache_prompt=False) == 0
