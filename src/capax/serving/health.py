"""Is it alive, is it ready, which version: open to everybody."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

import capax
from capax.serving.state import raw_server_of

router = APIRouter(tags=["server"])
OPEN_PATHS = ("/health", "/v1/health", "/ready", "/version")


@router.get("/health")
@router.get("/v1/health", include_in_schema=False)
async def health(request: Request) -> JSONResponse:
    """Say whether the process can still answer: 503 once its engine has died."""
    server = raw_server_of(request)
    if server.failure is not None:
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """Say whether requests are taken, and while loading how far that is."""
    server = raw_server_of(request)
    if server.is_ready:
        return JSONResponse({"status": "ready"})
    status = "loading"
    if server.failure is not None:
        status = "failed"
    elif server.is_draining:
        status = "draining"
    progress = server.progress
    document = {"status": status, "phase": progress.phase, "progress": round(progress.fraction, 3)}
    return JSONResponse(document, 503, {"Retry-After": "1"})


@router.get("/version")
async def version() -> dict[str, str]:
    """Return the version of capax."""
    return {"version": capax.__version__}
