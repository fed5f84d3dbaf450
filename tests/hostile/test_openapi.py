"""The OpenAPI document, and what schemathesis makes of it: right requests, wrong ones, no 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck

from capax import LLM
from capax.serving.app import create_app
from tests.serving.conftest import LiveServer, tiny_config

ALLOWED_ERRORS = {400, 404, 405, 413, 415, 429, 501}
MAX_NEW_TOKENS = 4


@pytest.fixture(scope="module")
def document(tiny_llm: LLM) -> dict[str, Any]:
    return create_app(tiny_config(), lambda _: tiny_llm).openapi()


def refs(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for child in node.values() for ref in refs(child)]
    if isinstance(node, list):
        return [ref for child in node for ref in refs(child)]
    return []


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    for ref in refs(document):
        target: Any = document
        for part in ref.removeprefix("#/").split("/"):
            target = target[part]
        assert target


def test_every_post_route_says_what_it_takes(document: dict[str, Any]) -> None:
    posts = [path for path, item in document["paths"].items() if "post" in item]
    assert "/v1/chat/completions" in posts
    for path in posts:
        body = document["paths"][path]["post"]["requestBody"]
        assert body["content"]["application/json"]["schema"], path


def shortened(body: object) -> object:
    """Keep a valid request cheap: the answer's length is not what is tested."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            value = body.get(name)
            if value is None or (isinstance(value, int) and value > MAX_NEW_TOKENS):
                body.pop(name, None)
        if isinstance(body.get("messages"), list) or "prompt" in body or "input" in body:
            body.setdefault("max_tokens", MAX_NEW_TOKENS)
    return body


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_of_the_document_fails_the_server(
    live_server: LiveServer, document: dict[str, Any], mode: str
) -> None:
    schema = schemathesis.openapi.from_dict(document)
    generation = getattr(schemathesis.GenerationMode, mode.upper())
    n_asked = 0
    with httpx2.Client(base_url=live_server.base_url, timeout=60.0) as client:
        for result in schema.get_all_operations():
            operation = result.ok()
            if mode == "negative" and operation.method.upper() != "POST":
                continue  # any text is a right path

            @hypothesis.settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.given(operation.as_strategy(generation_mode=generation))
            def ask(case: Any) -> None:
                nonlocal n_asked
                n_asked += 1
                check_answer(client, case)

            ask()
        assert n_asked > 100
        assert client.get("/health").status_code == 200
    live_server.wait_idle()
    live_server.server.llm.engine.check_integrity()


def check_answer(client: httpx2.Client, case: Any) -> None:
    """Send a case and look at what comes back."""
    path = case.formatted_path
    headers = {str(k): str(v) for k, v in dict(case.headers or {}).items()}
    if not all(is_header(k) and is_header(v) for k, v in headers.items()):
        return
    content = None
    if case.method.upper() == "POST":
        try:
            content = json.dumps(shortened(case.body)).encode()
        except TypeError:  # bytes, or schemathesis' sign for no body
            content = b""
        headers["Content-Type"] = "application/json"
    query = {str(k): v for k, v in dict(case.query or {}).items()}
    response = client.request(case.method, path, params=query, headers=headers, content=content)
    assert response.status_code < 500 or response.status_code == 501, (path, content, response.text)
    if response.status_code >= 400:
        assert response.status_code in ALLOWED_ERRORS, (path, content, response.text)
        if case.method.upper() != "HEAD":
            error = response.json()["error"]
            assert isinstance(error["message"], str)
            assert isinstance(error["type"], str)


def is_header(text: str) -> bool:
    return text.isascii() and text.isprintable() and text == text.strip() and text != ""
