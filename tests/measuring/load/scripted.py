"""A server that answers what a test says, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[str]:
    """Serve on a free port of 127.0.0.1; yields the base URL. `reply` gets head and body."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reply(head + await reader.readexactly(length), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def chunked(parts: list[bytes], *, status: str = "200 OK") -> bytes:
    """A whole response in chunks."""
    head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return head + body + b"0\r\n\r\n"


def plain(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole response with its length."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def completion_events(texts: list[str], n_prompt: int = 5) -> list[bytes]:
    """The events of a streamed completion, with usage."""
    events = [{"choices": [{"index": 0, "text": text}], "usage": None} for text in texts]
    usage = {"prompt_tokens": n_prompt, "completion_tokens": len(texts)}
    documents = [*events, {"choices": [], "usage": usage}]
    return [
        *(b"data: " + json.dumps(document).encode() + b"\n\n" for document in documents),
        b"data: [DONE]\n\n",
    ]


def models(name: str = "m") -> bytes:
    """The answer to /v1/models."""
    return plain(json.dumps({"object": "list", "data": [{"id": name}]}).encode())
