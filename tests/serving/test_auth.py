"""Who gets in: nobody without a key, once there is one, but to a short list of open paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.routing import BaseRoute

import capax.serving
from capax import LLM
from capax.errors import ConfigError
from capax.serving.app import create_app
from capax.serving.auth import Keys, tenant_of
from capax.serving.launch import check_safe
from tests.serving.conftest import client_of, tiny_config

pytestmark = pytest.mark.anyio

KEY, OTHER = "key-of-somebody", "key-of-somebody-else"
OPEN = {"/health", "/v1/health", "/ready", "/version", "/metrics"}
EQUALITY = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
PAGE = re.compile(r"/|/page/.*|/static/.*|/favicon.*")


def all_routes(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Yield (method, path) of every route, parameters filled in."""
    for route in routes:
        router = getattr(route, "original_router", None)  # included as it is, since FastAPI 0.120
        if router is not None:
            yield from all_routes(router.routes)
            continue
        path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", "/"))
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, path


async def status_of(client: httpx2.AsyncClient, method: str, path: str) -> int:
    return (await client.request(method, path)).status_code


async def test_every_route_but_the_open_ones_demands_a_key(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=(KEY,)) as client:
        routes = list(all_routes(create_app(tiny_config(), lambda _: tiny_llm).routes))
        assert ("POST", "/v1/chat/completions") in routes
        open_paths = {
            path
            for method, path in routes
            if method != "OPTIONS" and await status_of(client, method, path) != 401
        }
        assert {p for p in open_paths if not PAGE.fullmatch(p)} == OPEN
        assert await status_of(client, "GET", "/openapi.json") == 401
        assert await status_of(client, "POST", "/no/such/path") == 401
        for method in ("POST", "PUT", "DELETE", "PATCH"):  # open is open for reading
            assert await status_of(client, method, "/health") == 401


async def test_metrics_are_keyed_off_loopback(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=(KEY,), host="0.0.0.0") as client:
        assert await status_of(client, "GET", "http://10.0.0.1/metrics") == 401
        assert await status_of(client, "GET", "http://10.0.0.1/health") == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {OTHER} {KEY}",
        "Bearer sk-no-key-required",
        KEY,
    ],
)
async def test_a_wrong_key_is_refused_without_a_hint(tiny_llm: LLM, header: str) -> None:
    async with client_of(tiny_llm, api_keys=(KEY,)) as client:
        response = await client.get("/v1/models", headers={"Authorization": header})
        assert response.status_code == 401
        error = response.json()["error"]
        assert error["type"] == "authentication_error"
        assert error["code"] == "invalid_api_key"
        assert KEY not in response.text
        assert OTHER not in response.text


async def test_a_right_key_is_accepted(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=(KEY, OTHER)) as client:
        for key in (KEY, OTHER):
            for scheme in ("Bearer", "bearer"):
                headers = {"Authorization": f"{scheme} {key}"}
                assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_x_api_key_is_for_anthropic_routes(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=(KEY,)) as client:
        headers = {"x-api-key": KEY}
        assert (await client.post("/v1/messages/none", headers=headers)).status_code != 401
        assert (await client.get("/v1/models", headers=headers)).status_code == 401
        refused = await client.post("/v1/messages", json={})
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"


async def test_options_is_never_authenticated(tiny_llm: LLM) -> None:
    async with client_of(tiny_llm, api_keys=(KEY,)) as client:
        assert (await client.options("/v1/chat/completions")).status_code == 204


@pytest.mark.parametrize("key", ["sk-no-key-required", "EMPTY", ""])
async def test_placeholder_keys_do_when_none_is_set(client: httpx2.AsyncClient, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "x-api-key": key}
    assert (await client.get("/v1/models", headers=headers)).status_code == 200


def test_several_keys_are_several_tenants_and_one_is_none() -> None:
    keys = Keys([KEY, OTHER])
    first, second = keys.identify(KEY), keys.identify(OTHER)
    assert first is not None
    assert second is not None
    assert first != second
    assert KEY not in first
    assert keys.identify("neither") is None
    assert keys.identify(None) is None
    scope = {"type": "http", "path": "/", "headers": [(b"authorization", f"Bearer {KEY}".encode())]}
    assert keys.tenant(scope) == first
    assert Keys([KEY]).tenant(scope) == ""


def test_a_salt_makes_a_tenant_of_its_own_and_cannot_imitate_another() -> None:
    from starlette.requests import Request

    def tenant(identity: str, salt: str | None) -> str:
        return tenant_of(Request({"type": "http", "capax.tenant": identity}), salt)

    assert tenant("a", None) != tenant("a", "s") != tenant("a", "t")
    assert tenant("", "a\x1fs") != tenant("a", "s")


def test_keys_are_compared_by_compare_digest_alone() -> None:
    """Walks the room's source: '==' with anything called a key or digest would show."""
    suspicious = []
    for path in Path(capax.serving.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Compare)
                and any(isinstance(op, EQUALITY) for op in node.ops)
                and re.search(r"digest|api_key", ast.unparse(node))
            ):
                suspicious.append(f"{path.name}: {ast.unparse(node)}")
    assert suspicious == []
    source = (Path(capax.serving.__path__[0]) / "auth.py").read_text(encoding="utf-8")
    assert "hmac.compare_digest(digest, known)" in source


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_key_is_obligatory_off_loopback(host: str) -> None:
    with pytest.raises(ConfigError, match="a key is needed"):
        check_safe(tiny_config(host=host))
    check_safe(tiny_config(host=host, api_keys=(KEY,)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_safe(tiny_config(host=host))


def test_every_origin_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="cors-origin"):
        check_safe(tiny_config(cors_origins=("*",)))


def test_keys_do_not_show_in_the_configuration() -> None:
    assert KEY not in repr(tiny_config(api_keys=(KEY,)))
