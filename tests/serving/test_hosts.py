"""Hosts and origins: rebound names, forged requests, and what a browser may do."""

from __future__ import annotations

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import LLM
from capax.serving.hosts import HostList, is_loopback, parse_host
from tests.serving.conftest import LiveServer, client_of, tiny_config
from tests.serving.raw import exchange

pytestmark = pytest.mark.anyio

ALLOWED = [
    "localhost",
    "localhost:8000",
    "LOCALHOST",
    "127.0.0.1",
    "127.0.0.1:65535",
    "127.1.2.3",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
]
REFUSED = [
    "",
    "evil.com",
    "localhost.evil.com",
    "evil.com:8000",
    "127.0.0.1.nip.io",
    "localhost.",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::1",
    "::1",
    "[::1]evil.com",
    "[::1]:80:80",
    "localhost:",
    "localhost:80a",
    "localhost:123456",
    "user@localhost",
    "localhost/../evil",
    "localhost,evil.com",
    "localhost evil.com",
    "192.168.0.7",
    "xn--lcalhost-8za",
]


@pytest.mark.parametrize("host", ALLOWED)
async def test_hosts_of_this_machine_are_answered(client: httpx2.AsyncClient, host: str) -> None:
    response = await client.get("/health", headers={"Host": host})
    assert response.status_code == 200


@pytest.mark.parametrize("host", REFUSED)
async def test_other_hosts_are_refused(client: httpx2.AsyncClient, host: str) -> None:
    response = await client.get("/health", headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert response.json()["error"]["type"] == "permission_error"


def test_two_hosts_or_none_are_refused(live_server: LiveServer) -> None:
    for lines in (b"Host: localhost\r\nHost: localhost\r\n", b""):
        answer = exchange(live_server.port, b"GET /health HTTP/1.1\r\n" + lines + b"\r\n")
        assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))


@given(st.text(max_size=40))
def test_no_text_is_taken_for_a_host_of_this_machine_by_accident(text: str) -> None:
    hosts = HostList(tiny_config())
    if hosts.allows(text):
        host = parse_host(text)
        assert host == "localhost" or is_loopback(str(host))


def test_a_server_of_the_network_answers_to_addresses_and_configured_names() -> None:
    hosts = HostList(tiny_config(host="0.0.0.0", allowed_hosts=("llm.example.org", "capax")))
    for host in ("10.0.0.7:8080", "[fe80::1]", "llm.example.org:443", "capax", "localhost"):
        assert hosts.allows(host), host
    for host in ("0.0.0.0:8080", "[::]", "evil.com", "example.org", "x.llm.example.org"):
        assert not hosts.allows(host), host


async def test_a_page_of_a_stranger_can_neither_post_nor_read(client: httpx2.AsyncClient) -> None:
    for origin in ("https://evil.com", "null", "http://localhost.evil.com", "http://localhost:81"):
        headers = {"Origin": origin}
        response = await client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert response.status_code == 403, origin
        for response in (
            await client.get("/v1/models", headers=headers),
            await client.options(
                "/v1/completions", headers=headers | {"Access-Control-Request-Method": "POST"}
            ),
        ):
            assert "access-control-allow-origin" not in response.headers


async def test_a_simple_request_cannot_carry_a_prompt(client: httpx2.AsyncClient) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"Content-Type": kind} if kind else {}
        response = await client.post(
            "/v1/completions", content=b'{"prompt": "x", "max_tokens": 1}', headers=headers
        )
        assert response.status_code == 415, kind
        assert "application/json" in response.json()["error"]["message"]


async def test_the_page_of_the_server_itself_may_post(client: httpx2.AsyncClient) -> None:
    response = await client.post(
        "/v1/completions",
        json={"prompt": "x", "max_tokens": 1},
        headers={"Origin": "http://localhost"},
    )
    assert response.status_code == 200


async def test_a_configured_origin_may_post_and_read(tiny_llm: LLM) -> None:
    origin = "https://app.example.org"
    async with client_of(tiny_llm, cors_origins=(origin,)) as client:
        preflight = await client.options(
            "/v1/completions",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, content-type",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == origin
        assert "authorization" in preflight.headers["Access-Control-Allow-Headers"]
        answer = await client.post(
            "/v1/completions",
            json={"prompt": "x", "max_tokens": 1},
            headers={"Origin": origin},
        )
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_every_response_has_the_security_headers(client: httpx2.AsyncClient) -> None:
    for response in (await client.get("/health"), await client.get("/none")):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Referrer-Policy"] == "no-referrer"
