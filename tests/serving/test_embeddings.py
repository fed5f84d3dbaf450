"""/v1/embeddings and /v1/rerank: beside a model that writes, instead of it, and by it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import numpy as np
import pytest

from capax import LLM, Embedder
from capax.serving.load import load_models
from capax.serving.state import Models, Progress, own_nbytes
from tests.models import bert_model, gguf_model
from tests.serving.conftest import LiveServer, client_of, live, running_client

pytestmark = pytest.mark.anyio
NAMES = {"embedding_model_name": "small-embedder"}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(bert_model(), threads=1, ctx_size=64)


@pytest.fixture
async def both(tiny_llm: LLM, embedder: Embedder) -> AsyncIterator[httpx2.AsyncClient]:
    async with running_client(tiny_llm, lambda _: Models(tiny_llm, embedder), **NAMES) as running:
        client, server = running
        await server.loaded.wait()
        yield client


@pytest.fixture
async def alone(tiny_llm: LLM, embedder: Embedder) -> AsyncIterator[httpx2.AsyncClient]:
    """The embedding model without one that writes, under the name 'tiny'."""
    async with running_client(tiny_llm, lambda _: Models(None, embedder)) as (client, server):
        await server.loaded.wait()
        yield client


async def post(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def vectors(answer: dict[str, Any]) -> np.ndarray:
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


async def test_every_form_of_input_gives_the_models_own_vectors(
    both: httpx2.AsyncClient, embedder: Embedder
) -> None:
    texts = ["then and there", "o"]
    ids = [embedder.tokenizer.encode(text) for text in texts]
    expected = embedder.embed(texts)
    for given in (texts, ids, [texts[0], ids[1]]):
        answer = await post(both, input=given, model="small-embedder")
        assert np.array_equal(vectors(answer), expected)
        n = sum(map(len, ids))
        assert answer["usage"] == {"prompt_tokens": n, "total_tokens": n}
        assert (answer["object"], answer["model"]) == ("list", "small-embedder")
    for given in (texts[0], ids[0]):
        assert np.array_equal(vectors(await post(both, input=given)), expected[:1])


async def test_base64_holds_the_same_floats(both: httpx2.AsyncClient, embedder: Embedder) -> None:
    answer = await post(both, input="then", encoding_format="base64")
    raw = base64.b64decode(answer["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(raw, "<f4"), embedder.embed("then")[0])


async def test_dimensions_cuts_and_normalises(both: httpx2.AsyncClient, embedder: Embedder) -> None:
    cut = vectors(await post(both, input="then", dimensions=7))[0]
    whole = embedder.embed("then")[0][:7]
    assert np.allclose(cut, whole / np.linalg.norm(whole), atol=1e-6)
    assert len(vectors(await post(both, input="then", dimensions=48))[0]) == 48


async def test_a_long_text_is_refused_with_both_counts_or_cut_and_said(
    both: httpx2.AsyncClient, embedder: Embedder
) -> None:
    texts = ["e", "e " * 70, "e " * 62]
    refused = await both.post("/v1/embeddings", json={"input": texts})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["param"], error["type"]) == ("input", "invalid_request_error")
    assert "text 1 has 72 tokens" in error["message"]
    assert "at most 64" in error["message"]
    assert "truncate_prompt_tokens" in error["message"]
    answer = await post(both, input=texts, truncate_prompt_tokens=-1)
    assert answer["capax"] == {"truncated": [1]}
    assert answer["usage"]["prompt_tokens"] == 3 + 64 + 64
    assert np.array_equal(vectors(answer)[1], vectors(answer)[2])
    assert "capax" not in await post(both, input="e", truncate_prompt_tokens=10)


async def test_the_model_that_writes_embeds_too(
    both: httpx2.AsyncClient, client: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    expected = tiny_llm.embed("then and there")
    for client_, model in ((both, "tiny"), (client, "tiny"), (client, None)):
        answer = await post(client_, input="then and there", model=model)
        assert np.array_equal(vectors(answer), expected)
        assert answer["model"] == "tiny"


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({}, 400, "input"),
        ({"input": None}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [[]]}, 400, "text 0 is empty"),
        ({"input": {"a": 1}}, 400, "input"),
        ({"input": ["a", 5]}, 400, "contains 5"),
        ({"input": [[2, 320]]}, 400, "320"),
        ({"input": [[2, -1]]}, 400, "-1"),
        ({"input": [[True]]}, 400, "True"),
        ({"input": ["a"] * 2049}, 400, "2049 texts"),
        ({"input": [[5] * 60] * 2048, "truncate_prompt_tokens": -2}, 400, "-2"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "dimensions": 49}, 400, "has 48"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "a", "model": "other"}, 404, "other"),
    ],
)
async def test_bad_requests_are_named(
    both: httpx2.AsyncClient, body: dict[str, Any], status: int, named: str
) -> None:
    answer = await both.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]


async def test_a_request_has_a_bound_on_its_tokens(
    both: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capax.serving.embeddings.MAX_TOKENS", 9)
    await post(both, input=[[5] * 4, [5] * 5])
    answer = await both.post("/v1/embeddings", json={"input": [[5] * 5, [5] * 5]})
    assert answer.status_code == 400
    assert "10 tokens" in answer.json()["error"]["message"]


async def test_alone_it_is_ready_listed_and_counted_and_writes_nothing(
    alone: httpx2.AsyncClient, embedder: Embedder
) -> None:
    assert (await alone.get("/ready")).status_code == 200
    listed = (await alone.get("/v1/models")).json()["data"]
    assert [(m["id"], m["max_model_len"]) for m in listed] == [("tiny", 64)]
    assert np.array_equal(vectors(await post(alone, input="a")), embedder.embed("a"))
    for path, body in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        answer = await alone.post(path, json={"model": "tiny", **body})
        assert answer.status_code == 501
        assert "/v1/embeddings" in answer.json()["error"]["message"]
    metrics = (await alone.get("/metrics")).text
    assert 'capax_embedding_texts_total{model_name="tiny"} 1.0' in metrics
    assert (await alone.get("/plan")).json()["context_len"] == 64
    memory = (await alone.get("/capax/v1/memory")).json()
    assert memory["measured_bytes"]["weights"] <= memory["planned_bytes"]["weights"]


async def test_beside_it_both_are_listed_and_planned(
    both: httpx2.AsyncClient, tiny_llm: LLM, embedder: Embedder
) -> None:
    listed = (await both.get("/v1/models")).json()["data"]
    assert [m["id"] for m in listed] == ["tiny", "small-embedder"]
    assert (await both.get("/v1/models/small-embedder")).json() == listed[1]
    refused = await both.post("/v1/completions", json={"model": "small-embedder", "prompt": "a"})
    assert refused.status_code == 404
    planned = (await both.get("/capax/v1/memory")).json()["planned_bytes"]["total"]
    assert planned == tiny_llm.plan.footprint.total + own_nbytes(embedder)
    plan = (await both.get("/plan")).json()
    assert plan["embedding_model"]["bytes"] == embedder.plan.footprint.to_json()


async def test_rerank_orders_by_cosine(both: httpx2.AsyncClient, embedder: Embedder) -> None:
    documents = ["no", "then and there", "the then", "x"]
    body = {"query": "then and there", "documents": [documents[0], {"text": documents[1]},
                                                    *documents[2:]]}  # fmt: skip
    answer = (await both.post("/v1/rerank", json=body)).json()
    query, *rows = embedder.embed(["then and there", *documents]).astype(np.float64)
    scores = [float(row @ query) for row in rows]
    results = answer["results"]
    assert [r["index"] for r in results] == sorted(range(4), key=lambda i: -scores[i])
    assert results[0] == {
        "index": 1,
        "relevance_score": pytest.approx(1.0),
        "document": {"text": documents[1]},
    }
    for result in results:
        assert result["relevance_score"] == pytest.approx(scores[result["index"]], abs=1e-6)
    best = await both.post("/rerank", json=body | {"top_n": 1, "return_documents": False})
    assert best.json()["results"] == [{"index": 1, "relevance_score": pytest.approx(1.0)}]
    for bad in ({"documents": []}, {"documents": [5]}, {"query": 7}, {"top_n": -1}):
        assert (await both.post("/v1/rerank", json=body | bad)).status_code == 400


async def test_embedding_while_the_model_writes_changes_neither(
    both: httpx2.AsyncClient, tiny_llm: LLM
) -> None:
    import asyncio

    chat = {"prompt": "the", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    quiet = (await both.post("/v1/completions", json=chat)).json()["choices"]
    expected = tiny_llm.embed("then and there")
    results = await asyncio.gather(
        *(both.post("/v1/completions", json=chat) for _ in range(3)),
        *(post(both, input="then and there", model="tiny") for _ in range(6)),
        *(post(both, input=["e"] * 30) for _ in range(6)),
    )
    assert all(r.json()["choices"] == quiet for r in results[:3])
    assert all(np.array_equal(vectors(r), expected) for r in results[3:9])


def test_one_budget_holds_both_models() -> None:
    whole = load_models(Progress(), gguf_model("llama"), bert_model(), threads=1)
    assert whole.llm is not None
    assert whole.embedder is not None
    own = own_nbytes(whole.embedder)
    memory = whole.llm.plan.footprint.total + own
    models = load_models(Progress(), gguf_model("llama"), bert_model(), memory=memory, threads=1)
    assert models.llm is not None
    assert models.llm.plan.limit.nbytes == memory - own
    alone = load_models(Progress(), bert_model(), threads=1)
    assert alone.llm is None
    assert alone.embedder is not None


@pytest.fixture(scope="module")
def live_both(tiny_llm: LLM, embedder: Embedder) -> Iterator[LiveServer]:
    with live(tiny_llm, lambda _: Models(tiny_llm, embedder), **NAMES) as server:
        from tests.serving.conftest import wait_until

        wait_until(lambda: server.server.is_ready)
        yield server


def test_the_openai_client_gets_the_same_vectors(live_both: LiveServer, embedder: Embedder) -> None:
    import openai

    with openai.OpenAI(base_url=f"{live_both.base_url}/v1", api_key="EMPTY") as client:
        texts = ["then and there", "o"]
        for options in ({}, {"encoding_format": "float"}):  # it asks for base64 by itself
            answer = client.embeddings.create(model="small-embedder", input=texts, **options)  # type: ignore[arg-type]
            got = np.array([entry.embedding for entry in answer.data], np.float32)
            assert np.array_equal(got, embedder.embed(texts))
        with pytest.raises(openai.BadRequestError, match="72 tokens"):
            client.embeddings.create(model="small-embedder", input="e " * 70)


async def test_a_client_that_leaves_ends_the_work(
    tiny_llm: LLM, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between batches nobody goes on working for a request that was given up."""
    import asyncio

    from tests.serving.conftest import until

    n_batches = 0
    embed_ids = embedder.embed_ids

    def counted(batch: list[list[int]]) -> np.ndarray:
        nonlocal n_batches
        n_batches += 1
        return embed_ids(batch)

    monkeypatch.setattr(embedder, "embed_ids", counted)
    load = lambda _: Models(tiny_llm, embedder)  # noqa: E731
    async with running_client(tiny_llm, load, **NAMES) as (client, server):
        await server.loaded.wait()
        async with server.embedding_turn:  # the request cannot begin its first batch
            task = asyncio.create_task(post(client, input=[[5] * 60] * 200))
            await until(lambda: bool(server.exchanges))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: not server.exchanges)
        assert n_batches == 0
        assert not server.embedding_turn.locked()


async def test_before_it_is_loaded_the_answer_is_503(tiny_llm: LLM) -> None:
    import threading

    gate = threading.Event()

    def load(_: Progress) -> LLM:
        gate.wait(20)
        return tiny_llm

    async with client_of(tiny_llm, load) as client:
        answer = await client.post("/v1/embeddings", json={"input": "a"})
        gate.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
