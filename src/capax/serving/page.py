"""The page at /: the files of `page/`, each at its own path, and nothing else.

The policy lets the browser load from this server only, run no code but the page's files, and
make no markup of strings: whatever a model writes stays text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
FOLDER = Path(__file__).with_name("page")


def _paths() -> dict[str, Path]:
    """Return the path under which each file is served."""
    files = sorted(file for file in FOLDER.rglob("*") if file.suffix in MEDIA_TYPES)
    paths = {f"/page/{file.relative_to(FOLDER).as_posix()}": file for file in files}
    paths["/"] = paths.pop("/page/index.html")
    return paths


def _route(file: Path) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler that serves one file; a browser that has it is told so."""
    body = file.read_bytes()
    headers = {
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",  # kept, but asked for again: files may change with a version
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    async def serve(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=MEDIA_TYPES[file.suffix])

    return serve


def _router(paths: dict[str, Path]) -> APIRouter:
    pages = APIRouter()
    for path, file in paths.items():
        pages.add_api_route(path, _route(file), methods=["GET", "HEAD"], include_in_schema=False)
    return pages


PATHS = _paths()
OPEN_PATHS = tuple(PATHS)
router = _router(PATHS)
