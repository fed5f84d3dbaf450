"""The application's own routes, before and after the model is there."""

from __future__ import annotations

import threading

import httpx2
import pytest

from capax import LLM
from capax.serving.state import Progress
from tests.serving.conftest import CONTEXT_LEN, LiveServer, live, running_client, until

pytestmark = pytest.mark.anyio


async def test_a_ready_server_says_so(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json() == {"status": "ready"}
    assert "version" in (await client.get("/version")).json()


async def test_models_are_listed_with_their_context(client: httpx2.AsyncClient) -> None:
    for path in ("/v1/models", "/models"):
        listing = (await client.get(path)).json()
        assert listing["object"] == "list"
        [model] = listing["data"]
        assert model["id"] == "tiny"
        assert model["object"] == "model"
        assert model["max_model_len"] == model["meta"]["n_ctx"] == CONTEXT_LEN
    assert (await client.get("/v1/models/tiny")).json() == model


async def test_an_unknown_model_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/models/other/one")
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["type"] == "not_found_error"
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'other/one'" in error["message"]


async def test_an_unknown_path_has_the_same_error_shape(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    assert response.headers["x-should-retry"] == "false"
    assert (await client.post("/v1/messages/nothing")).json()["type"] == "error"


async def test_routes_wait_for_the_model_and_ready_says_how_far_it_is(tiny_llm: LLM) -> None:
    may_finish = threading.Event()

    def load(progress: Progress) -> LLM:
        progress.enter("weights", 0.25)
        may_finish.wait()
        return tiny_llm

    async with running_client(tiny_llm, load) as (client, server):
        try:
            assert (await client.get("/health")).status_code == 200
            response = await client.get("/v1/models")
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_loading"
            assert response.headers["Retry-After"] == "1"
            await until(lambda: server.progress.phase == "weights")
            ready = await client.get("/ready")
            assert ready.status_code == 503
            assert ready.json() == {"status": "loading", "phase": "weights", "progress": 0.25}
        finally:
            may_finish.set()


async def test_request_ids_are_echoed_if_they_are_sane(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health", headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"
    response = await client.get("/health", headers={"x-request-id": "a b\x7f" * 9})
    assert response.headers["x-request-id"].startswith("req_")


def test_a_live_server_answers_over_a_socket(live_server: LiveServer) -> None:
    assert httpx2.get(f"{live_server.base_url}/v1/models").json()["data"][0]["id"] == "tiny"


def test_a_model_that_cannot_be_loaded_ends_the_server(tiny_llm: LLM) -> None:
    def load(progress: Progress) -> LLM:
        raise OSError("no such file")

    with live(tiny_llm, load) as server:
        server.listener.stop()
    assert isinstance(server.server.failure, OSError)


async def test_a_server_that_is_still_loading_ends_without_waiting_for_the_weights(
    tiny_llm: LLM,
) -> None:
    may_finish, has_finished = threading.Event(), threading.Event()

    def load(progress: Progress) -> LLM:
        progress.enter("weights", 0.25)
        may_finish.wait()
        has_finished.set()
        return tiny_llm

    async with running_client(tiny_llm, load) as (_, server):
        await until(lambda: server.progress.phase == "weights")
    assert not has_finished.is_set()
    may_finish.set()
    await until(has_finished.is_set)
    assert not server.has_model
