"""What was planned, what is held, and how full the cache is: /plan, /metrics and /capax/v1/*."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from capax.serving.metrics import exposition
from capax.serving.state import Server, own_nbytes, raw_server_of, server_of

router = APIRouter(tags=["capacity"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/plan")
@router.get("/capax/v1/plan", include_in_schema=False)
async def plan(request: Request) -> dict[str, Any]:
    """Return the plan the model was loaded by, as `capax plan --json` prints it.

    The plan of an embedding model beside it is under `embedding_model`.
    """
    server = server_of(request)
    document = server.primary.plan.to_json()
    if server.has_llm and server.embedder is not None:
        document["embedding_model"] = server.embedder.plan.to_json()
    return document


@router.get("/capax/v1/memory")
async def memory(request: Request) -> dict[str, Any]:
    """Return the limit, what was planned and what is held now, in bytes."""
    server = server_of(request)
    return {
        "limit_bytes": server.limit_nbytes,
        "planned_bytes": planned_nbytes(server),
        "measured_bytes": server.memory(),
    }


@router.get("/capax/v1/cache")
async def cache(request: Request) -> dict[str, Any]:
    """Return the engine's counts: requests, KV pages, prefix-cache hits, tokens, steps."""
    return asdict(server_of(request).runner.stats())


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Return everything that is counted, in Prometheus' text format."""
    return Response(exposition(raw_server_of(request)), media_type=CONTENT_TYPE)


def planned_nbytes(server: Server) -> dict[str, int]:
    """Return what all models were planned to hold together, by what holds it, and the total."""
    planned: dict[str, int] = server.primary.plan.footprint.to_json()
    if server.has_llm and server.embedder is not None:
        for kind, nbytes in server.embedder.plan.footprint.to_json().items():
            planned[kind] += nbytes if kind not in ("base", "total") else 0
        planned["total"] += own_nbytes(server.embedder)
    return planned
