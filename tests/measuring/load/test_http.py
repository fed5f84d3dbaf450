"""Responses in every framing, and peers that lie, stall or break off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from capax.errors import ConfigError, EndpointError
from capax.measuring.load import http
from capax.measuring.load.http import Address, Client
from tests.measuring.load.scripted import chunked, plain, server

pytestmark = pytest.mark.anyio
BODY = b'{"text": "Gr\xc3\xbc\xc3\x9fe"}' * 3


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def fetch(url: str, max_nbytes: int = 1 << 20) -> tuple[int, bytes]:
    async with Client(url) as client, client.request("POST", "/x", b"{}") as response:
        return response.status, await response.body(max_nbytes)


def answering(*pieces: bytes, ends: bool = False) -> Callable[..., object]:
    """Send the pieces one by one, each for itself; then end the connection, if so asked."""

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if ends:
            raise ConnectionError

    return reply


FRAMINGS = {
    "length": (plain(BODY), False),
    "chunks": (chunked([BODY[:1], BODY[1:20], BODY[20:]]), False),
    "chunk extensions and trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-ENCODING: Chunked\r\n\r\n%X;x=1\r\n%s\r\n0\r\nA: b\r\n\r\n"
        % (len(BODY), BODY),
        False,
    ),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, True),
    "after 100 Continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + plain(BODY), False),
    "bare line feeds": (plain(BODY).replace(b"\r\n", b"\n", 2), False),
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_is_read_in_every_framing_byte_by_byte(framing: str) -> None:
    raw, ends = FRAMINGS[framing]
    async with server(answering(*(raw[i : i + 1] for i in range(len(raw))), ends=ends)) as url:  # type: ignore[arg-type]
        assert await fetch(url) == (200, BODY)


BAD = {
    "nothing": (b"", "closed the connection"),
    "another protocol": (b"220 smtp ready\r\n\r\n", "does not speak HTTP"),
    "a status that is none": (b"HTTP/1.1 abc OK\r\n\r\n", "does not speak HTTP"),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", "within the headers"),
    "a body that ends early": (plain(BODY)[:-5], "5 bytes early"),
    "a length that is none": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "'-5' bytes"),
    "a length of 50 digits": (
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % (b"9" * 50), "declares a body",
    ),
    "chunks that end early": (chunked([BODY])[:-9], "ends early"),
    "a chunk without a size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "b'xyz'",
    ),
    "a negative chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n", "size",
    ),
    "a huge chunk size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", "size",
    ),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "header bytes"),
    "a line without end": (b"HTTP/1.1 200 " + b"x" * 200_000, "without an end"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_peer_is_one_sentence(kind: str) -> None:
    raw, message = BAD[kind]
    async with server(answering(raw, ends=True)) as url:  # type: ignore[arg-type]
        with pytest.raises(EndpointError, match=message):
            await fetch(url)


async def test_a_body_has_a_limit() -> None:
    async with server(answering(plain(b"x" * 1001))) as url:  # type: ignore[arg-type]
        with pytest.raises(EndpointError, match="larger than 1,000"):
            await fetch(url, 1000)


async def test_connections_are_kept_and_replaced_when_they_were_closed() -> None:
    served: list[object] = []

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        writer.write(plain(b"ok"))
        if len(served) == 3:  # without a word: the client learns it with its next request
            await writer.drain()
            raise ConnectionError

    async with server(reply) as url, Client(url) as client:
        for _ in range(5):
            async with client.request("GET", "/x") as response:
                assert await response.body(10) == b"ok"
    assert len(set(map(id, served))) == 2


async def test_a_server_that_says_close_is_taken_at_its_word() -> None:
    served: list[object] = []

    async def reply(_: bytes, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        writer.write(plain(b"ok", headers="Connection: close\r\n"))

    async with server(reply) as url, Client(url) as client:
        for _ in range(3):
            async with client.request("GET", "/x") as response:
                assert await response.body(10) == b"ok"
    assert len(set(map(id, served))) == 3


async def test_a_body_that_was_not_read_to_its_end_does_not_reach_the_next_request() -> None:
    async with server(answering(chunked([b"first", b"second"]))) as url, Client(url) as client:  # type: ignore[arg-type]
        async with client.request("GET", "/x") as response:
            async for chunk in response.chunks():
                assert chunk == b"first"
                break
        async with client.request("GET", "/x") as response:
            assert await response.body(100) == b"firstsecond"


async def test_the_request_is_what_was_asked_for() -> None:
    seen: list[bytes] = []

    async def reply(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(plain(b""))

    async with (
        server(reply) as url,
        Client(f"{url}/base/", "secret") as client,
        client.request("POST", "/v1/x", b'{"a": 1}') as response,
    ):
        await response.body(1)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /base/v1/x HTTP/1.1"
    assert f"Host: {url.removeprefix('http://')}".encode() in lines
    assert b"Authorization: Bearer secret" in lines
    assert body == b'{"a": 1}'


async def test_nobody_there_is_one_sentence() -> None:
    async with server(answering()) as url:  # type: ignore[arg-type]
        pass
    with pytest.raises(EndpointError, match="cannot connect to 127"):
        await fetch(url)


async def test_a_peer_that_never_accepts_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(http, "CONNECT_TIMEOUT_S", 0.01)
    monkeypatch.setattr(asyncio, "open_connection", never)
    with pytest.raises(EndpointError, match=r"within 0\.01 s"):
        await fetch("http://127.0.0.1:9")


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:99999", "http://x:y", "http://u:p@x",
     "http://x/?a=1", "http://x/#a", "http://[::1"],
)  # fmt: skip
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


def test_addresses_are_understood() -> None:
    assert Address.parse("http://localhost:8080/v0/") == Address("localhost", 8080, False, "/v0")
    assert Address.parse("https://example.org").authority == "example.org"
    assert Address.parse("http://[::1]:8080").authority == "[::1]:8080"
    with pytest.raises(ConfigError, match="API key"):
        Client("http://x", "a\r\nX-Evil: 1")
