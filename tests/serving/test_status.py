"""The document behind the capacity panel."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from capax import LLM
from tests.serving.conftest import client_of

pytestmark = pytest.mark.anyio
CHAT = {
    "model": "tiny",
    "max_tokens": 4,
    "ignore_eos": True,  # each request draws its own seed
    "messages": [{"role": "user", "content": "hello " * 80}],
}


async def status_of(client: httpx2.AsyncClient) -> dict[str, Any]:
    response = await client.get("/capax/v1/status")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


async def test_the_parts_of_the_memory_are_what_is_planned(
    client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    memory = (await status_of(client))["memory"]
    resident = memory.pop("resident_bytes")
    assert memory.pop("limit_bytes") == tiny_llm.plan.limit.nbytes
    assert sum(memory.values()) == tiny_llm.plan.footprint.total
    assert all(nbytes >= 0 for nbytes in memory.values())
    assert resident > 0


async def test_work_is_counted_and_its_pages_are_kept_for_reuse(
    client: httpx2.AsyncClient,
) -> None:
    before = await status_of(client)
    for _ in range(2):
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    after = await status_of(client)
    assert after["tokens"]["generation"] == before["tokens"]["generation"] + 8
    assert after["tokens"]["prompt"] > before["tokens"]["prompt"]
    assert after["clock_s"] > before["clock_s"]
    assert after["requests"] == {"running": 0, "waiting": 0}
    assert after["memory"]["kv_used_bytes"] == 0


async def test_the_status_needs_a_key_where_there_is_one(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=("secret",)) as client:
        assert (await client.get("/capax/v1/status")).status_code == 401
        for path in ("/", "/page/main.js", "/ready"):
            assert (await client.get(path)).status_code == 200
        answer = await client.get("/capax/v1/status", headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
