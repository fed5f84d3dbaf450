"""A server whose answers are written in advance: the page, and an API that follows a script.

`Script.say` sets what the next answers stream; everything the page asked is kept, so that a
test sees what reached the server, and whether a stream was left before its end.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from capax.serving import page

MIB = 1 << 20
CHUNK = {
    "id": "chatcmpl-scripted",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": "scripted",
    "system_fingerprint": "scripted",
}
Logprobs = tuple[str, float, Sequence[tuple[str, float]]]  # token, probability, alternatives


@dataclass
class Script:
    """What the server says, and what it was asked."""

    answers: list[list[str]] = field(default_factory=lambda: [["Hello", " there."]])
    logprobs: list[Logprobs] | None = None
    pause_s: float = 0.0  # between two chunks
    reasoning: str = ""  # before the answer
    progress: list[int] = field(default_factory=list)  # of 100 prompt tokens, before the answer
    holds: bool = False  # after its chunks an answer stays open until it is left
    error: tuple[int, dict[str, Any]] | None = None  # of the next request
    breaks: bool = False  # the next stream ends in an error event
    key: str = ""
    mute: bool = False  # no model writes text here
    ready: dict[str, Any] = field(default_factory=lambda: {"status": "ready"})
    status: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    n_left: int = 0  # streams that the client closed before their end

    def say(self, *answers: Iterable[str]) -> None:
        """Let the next answers be these chunks; the last one is repeated."""
        self.answers = [list(answer) for answer in answers]

    def next_answer(self) -> list[str]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def status_document() -> dict[str, Any]:
    """The capacity panel's figures; a test changes what it needs."""
    return {
        "model": "scripted",
        "version": "0.1.0",
        "created": int(time.time()) - 3720,
        "clock_s": time.monotonic(),
        "context_len": 8192,
        "kv": "f16",
        "threads": 2,
        "isa": "avx2",
        "memory": {
            "limit_bytes": 1024 * MIB,
            "weights_bytes": 118 * MIB,
            "kv_used_bytes": 96 * MIB,
            "kv_cached_bytes": 210 * MIB,
            "kv_free_bytes": 398 * MIB,
            "scratch_bytes": 41 * MIB,
            "other_bytes": 62 * MIB,
            "resident_bytes": 537 * MIB,
        },
        "requests": {"running": 0, "waiting": 0},
        "tokens": {"prompt": 18_240, "generation": 9_312},
        "prefix": {"query_tokens": 18_240, "hit_tokens": 12_403},
        "preemptions": 0,
        "sampling_defaults": {"temperature": 0.2},
    }


def scripted_app(current: Callable[[], Script]) -> FastAPI:
    """Return the application that follows the current script."""
    app = FastAPI()
    app.include_router(page.router)

    def refusal(request: Request) -> JSONResponse | None:
        key = current().key
        if not key or request.headers.get("authorization") == f"Bearer {key}":
            return None
        return JSONResponse({"error": {"message": "no key", "code": "invalid_api_key"}}, 401)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        document = current().ready
        return JSONResponse(document, 200 if document["status"] == "ready" else 503)

    @app.get("/capax/v1/status")
    async def status(request: Request) -> JSONResponse:
        if current().mute:
            return JSONResponse({"error": {"message": "it writes none"}}, 501)
        return refusal(request) or JSONResponse({**status_document(), **current().status})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        script = current()
        body = json.loads(await request.body())
        script.requests.append(body)
        if refused := refusal(request):
            return refused
        if script.error:
            code, document = script.error
            script.error = None
            return JSONResponse(document, code, {"Retry-After": "2"})
        return StreamingResponse(_watched(script, body), media_type="text/event-stream")

    return app


async def _watched(script: Script, body: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        async for event in _events(script, body):
            yield event
    except asyncio.CancelledError:
        script.n_left += 1
        raise


async def _events(script: Script, body: dict[str, Any]) -> AsyncIterator[bytes]:
    yield _delta({"role": "assistant", "content": ""})
    if script.reasoning:
        yield _delta({"reasoning_content": script.reasoning})
    wants_logprobs = body.get("logprobs", False)
    for processed in script.progress:
        progress = {"total": 100, "processed": processed, "cache": 0, "time_ms": 1}
        yield _data({**CHUNK, "choices": [], "usage": None, "prompt_progress": progress})
    if script.progress and script.holds:
        await asyncio.Event().wait()
    chunks = [(text, None) for text in script.next_answer()]
    if script.logprobs and wants_logprobs:
        chunks = [(entry[0], _logprobs(entry)) for entry in script.logprobs]
    for text, logprobs in chunks:
        yield _delta({"content": text}, logprobs=logprobs)
        await asyncio.sleep(script.pause_s)
    if script.breaks:
        script.breaks = False
        yield _data({"error": {"message": "the engine has stopped", "type": "server_error"}})
        yield b"data: [DONE]\n\n"
        return
    if script.holds:
        await asyncio.Event().wait()
    yield _delta({}, finish_reason="stop")
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": len(chunks),
        "total_tokens": 120 + len(chunks),
        "prompt_tokens_details": {"cached_tokens": 96},
    }
    yield _data(
        {**CHUNK, "choices": [], "usage": usage, "timings": {"predicted_per_second": 412.3}}
    )
    yield b"data: [DONE]\n\n"


def _delta(delta: dict[str, Any], **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    return _data({**CHUNK, "choices": [choice], "usage": None})


def _logprobs(entry: Logprobs) -> dict[str, Any]:
    token, probability, alternatives = entry
    top = [_token(text, p) for text, p in ((token, probability), *alternatives)]
    return {"content": [{**_token(token, probability), "top_logprobs": top}]}


def _token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(probability), "bytes": list(text.encode())}


def _data(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
