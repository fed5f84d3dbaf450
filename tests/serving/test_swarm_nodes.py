"""A swarm of named nodes behind one served name: the trained ones, here and on another server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capax import LLM
from capax.errors import ConfigError
from capax.scaling.strategies.strategy import parse_strategy
from capax.scaling.swarm.nodes_file import NodeLine, read_nodes
from capax.scaling.swarm.registry import Registry
from capax.scaling.tasks import read_tasks
from capax.serving.load import load_models
from capax.serving.nodes import NodesFile, load_nodes, read_file
from capax.serving.state import Models
from capax.serving.strategies import check_nodes
from tests.serving.conftest import LiveServer, live, running_client, until
from tests.serving.test_chat import chunks_of

pytestmark = pytest.mark.anyio

MODELS = Path(__file__).parents[2] / "models" / "swarm"
QUESTIONS = read_tasks(MODELS / "questions.jsonl", limit=8)


def models_of(nodes: NodesFile) -> Models:
    from capax.serving.state import Progress

    return load_models(Progress(), MODELS / "node0.gguf", threads=1, parallel=16, nodes=nodes)


@pytest.fixture(scope="module")
def far_server() -> Iterator[tuple[LiveServer, LLM]]:
    """The fifth node, on a server of its own."""
    with (
        LLM(MODELS / "node4.gguf", threads=1, n_sequences=16, parallel=16) as llm,
        live(llm, model_name="node4") as server,
    ):
        yield server, llm


@pytest.fixture(scope="module")
def nodes(far_server: tuple[LiveServer, LLM]) -> NodesFile:
    lines = read_nodes(MODELS / "nodes.json")
    lines[4].model, lines[4].base_url = "node4", f"{far_server[0].base_url}/v1"
    return NodesFile("five", lines)


@pytest.fixture(scope="module")
def loaded(nodes: NodesFile) -> Models:
    return models_of(nodes)


@pytest.fixture
async def client(loaded: Models, anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    assert loaded.llm is not None
    async with running_client(loaded.llm, lambda progress: loaded, model_name="node0") as (c, s):  # type: ignore[arg-type,return-value]
        await until(lambda: s.is_ready or s.failure is not None)
        yield c


async def chat(client: httpx2.AsyncClient, question: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": "swarm:five", "messages": [{"role": "user", "content": question}], "seed": 1,
        **fields,
    }  # fmt: skip
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("judging", ["reason", "letters"])
async def test_one_request_is_answered_by_the_consensus_of_all_nodes(
    client: httpx2.AsyncClient, loaded: Models, far_server: tuple[LiveServer, LLM], judging: str
) -> None:
    """Most nodes guess; the answer that all judges find fits is chosen. Tokens are the engines'."""
    assert loaded.nodes is not None
    engines = [loaded.llm, *loaded.nodes.models.values(), far_server[1]]
    assert len(engines) == 5
    right = outvoted = 0
    questions = QUESTIONS[: 4 if judging == "letters" else 8]
    for task in questions:
        before = sum(llm.engine.stats.generation_tokens for llm in engines if llm is not None)
        answer = await chat(
            client, task.prompt, model="node0", strategy=f"swarm:nodes=all,judging={judging}"
        )
        after = sum(llm.engine.stats.generation_tokens for llm in engines if llm is not None)
        assert answer["usage"]["completion_tokens"] == after - before
        swarm = answer["x_swarm"]
        assert swarm["tokens"] == answer["usage"]["total_tokens"]
        assert swarm["is_complete"] is True
        chosen = swarm["answers"][swarm["winner"]]
        assert chosen["text"] == answer["choices"][0]["message"]["content"]
        assert sum(len(one["nodes"]) for one in swarm["answers"]) == 5
        right += chosen["text"] == task.reference
        most = max(len(one["nodes"]) for one in swarm["answers"])
        outvoted += chosen["text"] == task.reference and len(chosen["nodes"]) < max(most, 2)
        purposes = {part["purpose"]: part["calls"] for part in answer["capax"]["strategy"]}
        assert purposes["answer"] == 5
        calls = 3 if judging == "letters" else 1
        assert purposes["compare"] == calls * swarm["comparisons"]
    assert right >= len(questions) - 1
    assert (
        outvoted >= len(questions) // 3
    )  # and a vote on the same answers would have chosen others


async def test_the_name_of_the_swarm_is_listed_and_answers_everywhere(
    client: httpx2.AsyncClient,
) -> None:
    task = QUESTIONS[0]
    models = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
    assert models["swarm:five"]["meta"]["nodes"] == [f"node{i}" for i in range(5)]
    assert (await client.get("/v1/models/swarm:five")).json()["id"] == "swarm:five"
    answer = await chat(client, task.prompt)
    assert answer["choices"][0]["message"]["content"] == task.reference
    messages = [{"role": "user", "content": task.prompt}]
    whole = await client.post(
        "/v1/messages", json={"model": "swarm:five", "messages": messages, "max_tokens": 20}
    )
    assert whole.json()["content"][0]["text"] == task.reference
    asked = await client.post("/v1/responses", json={"model": "swarm:five", "input": messages})
    assert asked.json()["output"][-1]["content"][0]["text"] == task.reference


async def test_nodes_may_be_named_and_unknown_ones_are_refused(client: httpx2.AsyncClient) -> None:
    answer = await chat(
        client, QUESTIONS[1].prompt, model="node0", strategy="swarm:nodes=node1+node4"
    )
    names = {name for one in answer["x_swarm"]["answers"] for name in one["nodes"]}
    assert names == {"node1", "node4"}
    for spec, field in (("swarm:nodes=node9", "node9"), ("swarm:nodes=node1+node1", "twice")):
        refused = await client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}], "strategy": spec},
        )
        assert refused.status_code == 400
        assert field in refused.json()["error"]["message"]


@pytest.mark.parametrize("cap", [60, 200, 600])
async def test_a_cap_on_all_tokens_of_all_nodes_holds(client: httpx2.AsyncClient, cap: int) -> None:
    answer = await chat(client, QUESTIONS[2].prompt, max_total_tokens=cap)
    assert answer["usage"]["total_tokens"] <= cap
    assert answer["x_swarm"]["is_complete"] is False
    assert answer["choices"][0]["message"]["content"]


async def test_a_stream_brings_the_winner_and_what_it_rests_on(client: httpx2.AsyncClient) -> None:
    whole = await chat(client, QUESTIONS[3].prompt)
    chunks = await chunks_of(
        client, model="swarm:five", seed=1, max_tokens=20,
        messages=[{"role": "user", "content": QUESTIONS[3].prompt}],
    )  # fmt: skip
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["x_swarm"]["answers"]


async def test_a_form_of_the_answer_is_refused(client: httpx2.AsyncClient) -> None:
    refused = await client.post(
        "/v1/chat/completions",
        json={
            "model": "swarm:five", "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_object"},
        },
    )  # fmt: skip
    assert refused.status_code == 400
    assert "nodes" in refused.json()["error"]["message"]


async def test_a_node_that_is_gone_leaves_the_others(nodes: NodesFile, anyio_backend: str) -> None:
    lines = nodes.lines[:2]
    gone = NodeLine("gone", "none", base_url="http://127.0.0.1:9/v1", form=lines[0].form)
    models = models_of(NodesFile("four", [*lines, gone]))
    assert models.llm is not None
    async with running_client(models.llm, lambda progress: models, model_name="node0") as (c, s):  # type: ignore[arg-type,return-value]
        await until(lambda: s.is_ready or s.failure is not None)
        answer = await chat(c, QUESTIONS[5].prompt, model="swarm:four")
    assert answer["x_swarm"]["is_complete"] is False
    names = {name for one in answer["x_swarm"]["answers"] for name in one["nodes"]}
    assert names == {"node0", "node1"}


def test_the_servers_own_model_is_loaded_once_and_memory_is_shared(nodes: NodesFile) -> None:
    here = NodesFile("four", nodes.lines[:4])
    limit = 512 << 20
    loaded, left = load_nodes(here, MODELS / "node0.gguf", memory=limit, threads=1, ctx_size=None)
    assert len(loaded.models) == 3
    assert left is not None
    assert limit // 5 < left < limit
    assert all(llm.plan.footprint.total <= limit // 4 for llm in loaded.models.values())
    for llm in loaded.models.values():
        llm.close()


def test_what_a_registry_says_is_read(tmp_path: Path) -> None:
    path = tmp_path / "swarm.sqlite"
    nodes = MODELS / "nodes.json"
    with pytest.raises(ConfigError, match="does not exist"):
        read_file(nodes, path)
    registry = Registry(path)
    with pytest.raises(ConfigError, match="run 'capax scale swarm admit'"):
        read_file(nodes, path)
    registry.add_admission("node1", 20, 20, 5)
    registry.add_round({"node1": (9, 0)}, answered={"node1": (1, 0)})
    found = read_file(nodes, path)
    assert found.weights == {f"node{i}": float(i == 1) for i in range(5)}
    assert found.standing is not None
    assert found.standing["node1"] > found.standing["node2"]
    assert found.name == "nodes"


def test_a_strategy_that_names_nodes_needs_some() -> None:
    with pytest.raises(ConfigError, match="--nodes FILE"):
        check_nodes(parse_strategy("swarm:nodes=all"), None)
    check_nodes(parse_strategy("swarm:n=3"), None)
    with pytest.raises(ConfigError, match="nodes=all"):
        parse_strategy("swarm:n=3,seconds=2")
    assert json.loads((MODELS / "nodes.json").read_text())[0]["form"]["letters"] == [" yes", " no"]
