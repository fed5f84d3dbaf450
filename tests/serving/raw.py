"""Plain sockets, for what no HTTP client would send."""

from __future__ import annotations

import json
import socket
from typing import Any

DEADLINE_S = 20.0


_opened: list[socket.socket] = []


def connect(port: int) -> socket.socket:
    """Return a connection to a server on this machine; `close_all` closes what is left open."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    _opened.append(connection)
    return connection


def close_all() -> None:
    """Close every connection that a test has opened."""
    while _opened:
        _opened.pop().close()


def exchange(port: int, *parts: bytes) -> bytes:
    """Send bytes and return everything that comes back until the server closes or is done."""
    with connect(port) as connection:
        for part in parts:
            connection.sendall(part)
        return read_response(connection)


def read_response(connection: socket.socket) -> bytes:
    """Return one response with its body, by its Content-Length, or all until the end."""
    received = b""
    while True:
        head, found, body = received.partition(b"\r\n\r\n")
        if found:
            length = content_length(head)
            if length is not None and len(body) >= length:
                return received
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


def content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


def post(path: str, document: Any, *headers: str) -> bytes:
    """Return the bytes of a JSON request."""
    body = json.dumps(document).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    """Return the status of a response, 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def error_of(answer: bytes) -> dict[str, Any]:
    """Return the error object of a response."""
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error
