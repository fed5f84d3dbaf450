"""Every setting and limit of the server in one frozen place; the flags of `capax serve` fill it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MIB = 1 << 20
# What a server holds besides its models, taken from --memory: its code (measured 2026-11-23:
# 30 MiB with FastAPI, pydantic, uvicorn, llguidance) and the bodies of requests.
OWN_NBYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens, whom it answers and how much it takes. `_s` are seconds."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    model_name: str = "model"  # the name clients use: --alias, else the name given
    memory: int | None = None  # the limit on everything held; None: what the machine has
    embedding_model_name: str = ""  # of the embedding model beside it, if there is one
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()  # beside loopback names and `host`
    cors_origins: tuple[str, ...] = ()  # 'https://example.org'; none by default
    metrics_compat: Literal["vllm"] | None = None
    strict_params: bool = False  # an unknown field is an error, not a header
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False
    request_log: Path | None = None  # a line of counts and times per request; None: no such file
    strategy: str | None = None  # how chats are answered; None: by one answer of the model

    # What is received.
    max_body_nbytes: int = 8 * MIB
    max_buffered_nbytes: int = 32 * MIB  # bodies of all requests together, until they are over
    max_header_nbytes: int = 32 * 1024
    max_headers: int = 100
    max_url_nbytes: int = 8 * 1024
    max_json_depth: int = 64
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    min_body_rate: int = 1024  # bytes per second, after the first two seconds
    keep_alive_s: float = 15.0  # an idle connection is closed after this long
    max_connections: int = 4096

    # What is worked on.
    parallel: int = 16  # sequences at once
    max_queue: int = 256  # requests waiting for the engine
    max_per_key: int = 256  # requests of one key, running and waiting
    request_timeout_s: float = 3600.0
    max_prompts: int = 256  # prompts of one request

    # Streams.
    sse_keep_alive_s: float = 15.0
    slow_reader_s: float = 30.0  # a reader that takes nothing for this long is left

    drain_s: float = 30.0  # what is running may finish this long after SIGTERM
