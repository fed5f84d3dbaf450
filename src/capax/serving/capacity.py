"""What was planned, what is held, and how full the cache is: /plan, /metrics and /capax/v1/*."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from capax.serving.metrics import exposition
from capax.serving.state import raw_server_of, server_of

router = APIRouter(tags=["capacity"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/plan")
@router.get("/capax/v1/plan", include_in_schema=False)
async def plan(request: Request) -> dict[str, Any]:
    """Return the plan the model was loaded by, as `capax plan --json` prints it."""
    return server_of(request).llm.plan.to_json()


@router.get("/capax/v1/memory")
async def memory(request: Request) -> dict[str, Any]:
    """Return the limit, what was planned and what is held now, in bytes."""
    server = server_of(request)
    plan = server.llm.plan
    return {
        "limit_bytes": plan.limit.nbytes,
        "planned_bytes": plan.footprint.to_json(),
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
