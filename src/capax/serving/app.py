"""The application: routes behind their guards, and the model loaded while the listener is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import capax
from capax.serving import (
    capacity,
    chat,
    completions,
    embeddings,
    health,
    listing,
    messages,
    page,
    rerank,
    responses,
    status,
    tokenize,
)
from capax.serving.auth import KeyGuard
from capax.serving.config import ServerConfig
from capax.serving.document import openapi_document
from capax.serving.envelope import Envelope
from capax.serving.errors import ApiError, error_response
from capax.serving.hosts import HostGuard, is_loopback
from capax.serving.intake import Intake
from capax.serving.lifecycle import running
from capax.serving.request_log import RequestLogging
from capax.serving.state import Load, Server

# Each has a `router`; one with paths that need no key names them in OPEN_PATHS.
ROUTE_MODULES = (
    health,
    listing,
    capacity,
    status,
    completions,
    chat,
    tokenize,
    responses,
    messages,
    embeddings,
    rerank,
    page,
)


def create_app(config: ServerConfig, load: Load) -> FastAPI:
    """Return the application. `load` runs in a thread when the application starts.

    `app.state.server` is the `Server`. Raises ConfigError for a request log that cannot be kept.
    """
    server = Server(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(server, load):
            yield
        if server.request_log is not None:
            server.request_log.close()

    app = FastAPI(
        title="capax",
        version=capax.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    open_paths: set[str] = set()
    for module in ROUTE_MODULES:
        app.include_router(module.router)
        open_paths.update(getattr(module, "OPEN_PATHS", ()))
    if is_loopback(config.host):
        open_paths.add("/metrics")
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    setattr(app, "openapi", cache(lambda: openapi_document(app)))  # noqa: B010  # FastAPI's hook
    # The last added is the first passed.
    app.add_middleware(Intake, server=server)
    app.add_middleware(KeyGuard, keys=server.keys, open_paths=open_paths)
    app.add_middleware(HostGuard, server=server)
    app.add_middleware(Envelope, server=server)
    if server.request_log is not None:
        app.add_middleware(RequestLogging, log=server.request_log, model=config.model_name)
    return app


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Paths and methods that do not exist."""
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    headers: dict[str, str] = dict(error.headers or {})
    if error.status_code == 404:
        answer = ApiError(404, f"there is no path {path!r:.100} here; see /openapi.json")
    elif error.status_code == 405:
        answer = ApiError(405, f"{path} does not take {request.method}", headers=headers)
    else:
        answer = ApiError(error.status_code, str(error.detail), type="invalid_request_error")
    return error_response(answer, path)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """Path and query parameters of the wrong type; bodies are read by `read_body`."""
    if not isinstance(error, RequestValidationError):
        raise error
    first: dict[str, Any] = dict(error.errors()[0])
    param = ".".join(str(part) for part in first["loc"][1:])
    return error_response(ApiError(400, f"{param}: {first['msg']}", param=param), request.url.path)
