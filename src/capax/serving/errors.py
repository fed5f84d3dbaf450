"""What clients see when something is wrong: one error class, one table, two body shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from capax.errors import (
    CapacityError,
    CapaxError,
    ConfigError,
    ContextLengthError,
    QueueFullError,
    SandboxError,
)

if TYPE_CHECKING:
    from capax.serving.state import Server

RETRY_AFTER_S = 1
# Anthropic's names for what went wrong, by HTTP status.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


class ApiError(CapaxError):
    """An error with its HTTP status. `code` is a word or None, never a number."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES[status]
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the 400 for a bad request field."""
    return ApiError(400, message, param=param, code=code)


def not_ready(message: str, code: str = "model_loading") -> ApiError:
    """Return a 503 that a client may try again soon."""
    return ApiError(503, message, code=code, headers=_retry_headers())


def queue_full(message: str) -> ApiError:
    """Return the 429 of a server that has enough to do."""
    return ApiError(429, message, code="queue_full", headers=_retry_headers())


def check_model(server: Server, name: str | None) -> None:
    """Raise 404 model_not_found unless `name` is this server's model, or absent."""
    if name is not None and name not in server.model_names:
        raise ApiError(
            404,
            f"model {name!r:.100} is not served here; use {server.model_name!r}",
            code="model_not_found",
            param="model",
        )


def as_api_error(error: BaseException) -> ApiError:
    """Return what a client is told about any exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return queue_full(str(error))
    if isinstance(error, ContextLengthError):
        return invalid(str(error), code="context_length_exceeded")
    # A request that could never fit, however long it waited.
    if isinstance(error, ConfigError | CapacityError | SandboxError):
        return invalid(str(error))
    if isinstance(error, MemoryError):
        return not_ready("the system has no memory left; ask again later", "out_of_memory")
    if isinstance(error, CapaxError):
        return ApiError(500, str(error))
    return ApiError(500, "an internal error; the server's log has it under this request id")


def error_object(error: ApiError) -> dict[str, object]:
    """Return OpenAI's error body."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_error_object(error: ApiError) -> dict[str, object]:
    """Return Anthropic's error body."""
    kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def is_anthropic(path: str) -> bool:
    """Whether a path speaks Anthropic's protocol."""
    return re.fullmatch(r"(/v1)?/messages(/.*)?", path) is not None


def error_response(error: ApiError, path: str) -> Response:
    """Return the response for an error of a request to `path`."""
    headers = dict(error.headers)
    if error.status not in (429, 503) and "x-should-retry" not in headers:
        headers["x-should-retry"] = "false"
    body = anthropic_error_object(error) if is_anthropic(path) else error_object(error)
    return Response(msgspec.json.encode(body), error.status, headers, "application/json")


def _retry_headers() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_S), "retry-after-ms": str(1000 * RETRY_AFTER_S)}
