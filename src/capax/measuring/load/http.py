"""As much HTTP/1.1 as it takes to send a JSON body and time what comes back.

Written on asyncio's streams, so that the generator costs little beside the server it measures.
The peer is not trusted: headers, chunk sizes and waiting times are bounded, and whatever is wrong
is an EndpointError in one sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from capax.errors import ConfigError, EndpointError

CONNECT_TIMEOUT_S = 10.0
MAX_HEADER_NBYTES = 64 << 10
READ_NBYTES = 64 << 10
MAX_IDLE = 256  # connections kept for the next request


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is; `path` is what all its paths begin with."""

    host: str
    port: int
    is_tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read http://host[:port][/path] or https://... Raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r:.200} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r:.200} is not of the form http://host:port")
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(f"{url!r:.200} may have a host, a port and a path only")
        is_tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


class Connection:
    """One connection; used for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_reusable = False  # only behind the end of a body

    def close(self) -> None:
        self.writer.transport.abort()


class Response:
    """A response whose headers have arrived; its body is read once."""

    def __init__(self, status: int, headers: dict[str, str], connection: Connection) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises EndpointError if it is broken off."""
        async for chunk in self._chunks():
            yield chunk
        names = ("transfer-encoding", "content-length")
        has_end = self.status in (204, 304) or any(name in self.headers for name in names)
        self._connection.is_reusable = has_end

    async def _chunks(self) -> AsyncIterator[bytes]:
        reader = self._connection.reader
        if self.status in (204, 304):
            return
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            async for chunk in _dechunked(reader):
                yield chunk
            return
        declared = self.headers.get("content-length")
        if declared is None:  # the body ends where the connection does
            while chunk := await reader.read(READ_NBYTES):
                yield chunk
            return
        if not declared.isascii() or not declared.isdigit() or len(declared) > 15:
            raise EndpointError(f"the server declares a body of {declared!r:.40} bytes")
        left = int(declared)
        while left:
            chunk = await reader.read(min(left, READ_NBYTES))
            if not chunk:
                raise EndpointError(f"the body ends {left:,} bytes early")
            left -= len(chunk)
            yield chunk

    async def body(self, max_nbytes: int) -> bytes:
        """Return the whole body. Raises EndpointError if it is larger than `max_nbytes`."""
        parts: list[bytes] = []
        n = 0
        async for chunk in self.chunks():
            parts.append(chunk)
            n += len(chunk)
            if n > max_nbytes:
                raise EndpointError(f"the body is larger than {max_nbytes:,} bytes")
        return b"".join(parts)


class Client:
    """Connections to one server, kept open between requests. Use as an async context."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.address = Address.parse(base_url)
        self._tls = ssl.create_default_context() if self.address.is_tls else None
        self._authorization = ""
        if api_key is not None:
            if not api_key.isascii() or not api_key.isprintable():
                raise ConfigError("the API key has characters that a header cannot carry")
            self._authorization = f"Authorization: Bearer {api_key}\r\n"
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._idle:
            self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Response]:
        """Send a request and yield the response once its headers are here.

        A kept connection that turns out to be closed is replaced by a new one, once. Raises
        EndpointError for a server that cannot be reached or does not speak HTTP.
        """
        head = (
            f"{method} {self.address.path}{path} HTTP/1.1\r\n"
            f"Host: {self.address.authority}\r\n{self._authorization}"
            "Accept: text/event-stream, application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        message = head.encode("ascii") + body
        connection = None
        try:
            while True:
                is_kept = bool(self._idle)
                connection = self._idle.pop() if is_kept else await self._connect()
                connection.is_reusable = False
                try:
                    connection.writer.write(message)
                    await connection.writer.drain()
                    response = await _response(connection)
                    break
                except (_Closed, ConnectionError):
                    connection.close()
                    if not is_kept:
                        raise EndpointError("the server closed the connection") from None
            yield response
            keeps = response.headers.get("connection", "").lower() != "close"
            if connection.is_reusable and keeps and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                connection = None
        except OSError as error:
            raise EndpointError(f"the connection failed: {error.strerror or error}") from None
        finally:
            if connection is not None:
                connection.close()

    async def _connect(self) -> Connection:
        a = self.address
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                opened = await asyncio.open_connection(a.host, a.port, ssl=self._tls)
        except TimeoutError:
            raise EndpointError(
                f"no connection to {a.authority} within {CONNECT_TIMEOUT_S:g} s"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise EndpointError(f"cannot connect to {a.authority}: {reason}") from None
        return Connection(*opened)


class _Closed(Exception):
    """The connection ended before the first byte of a response."""


async def _response(connection: Connection) -> Response:
    while True:
        lines = await _head(connection.reader)
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
            raise EndpointError(f"the server does not speak HTTP/1.1: {lines[0]!r:.80}")
        if code[0] == "1":  # 100 Continue and the like: the response is still to come
            continue
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return Response(int(code), headers, connection)


async def _head(reader: asyncio.StreamReader) -> list[str]:
    lines: list[str] = []
    nbytes = 0
    while True:
        try:
            line = await reader.readline()
        except ValueError:  # longer than asyncio's own limit
            raise EndpointError("the server sends a header line without an end") from None
        if not line.endswith(b"\n"):
            if not line and not lines:
                raise _Closed
            raise EndpointError("the connection ended within the headers")
        nbytes += len(line)
        if nbytes > MAX_HEADER_NBYTES:
            raise EndpointError(f"the server sends more than {MAX_HEADER_NBYTES:,} header bytes")
        text = line.rstrip(b"\r\n").decode("latin-1")
        if text:
            lines.append(text)
        elif lines:
            return lines


async def _dechunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            line = await reader.readline()
        except ValueError:
            raise EndpointError("the server sends a chunk size without an end") from None
        digits = line.partition(b";")[0].strip()
        if not line.endswith(b"\n"):
            raise EndpointError("the stream ends early")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
            raise EndpointError(f"a chunk has the size {digits!r:.20}")
        left = int(digits, 16)
        if left == 0:
            while (await reader.readline()).strip():  # trailers
                pass
            return
        while left:
            chunk = await reader.read(min(left, READ_NBYTES))
            if not chunk:
                raise EndpointError("the stream ends early")
            left -= len(chunk)
            yield chunk
        await reader.readline()
