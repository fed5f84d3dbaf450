"""Who is asking: API keys, compared in constant time, and the tenant a request belongs to.

A route is closed unless its path is in the open list: whoever adds one need not think of it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from capax.serving.errors import ApiError, is_anthropic

TENANT = "capax.tenant"  # where the scope keeps it


class Keys:
    """The configured API keys, kept as SHA-256 digests only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def identify(self, given: str | None) -> str | None:
        """Return the identity of the key given, or None if it is none of ours.

        Compares with every key, whichever matches, so that time tells nothing.
        """
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known.hex()[:16]
        return found if given is not None else None

    def tenant(self, scope: Scope) -> str:
        """Return the tenant of a request. Raises ApiError 401 without a valid key.

        One key, or none, is one tenant, called "".
        """
        if not self._digests:
            return ""
        identity = self.identify(given_key(scope))
        if identity is None:
            raise ApiError(
                401,
                "an API key is needed and the one given is not valid; "
                "send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return identity if len(self._digests) > 1 else ""


class KeyGuard:
    """Default-deny: without a valid key nothing answers but the open paths."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            scope[TENANT] = self._keys.tenant(scope)
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS":
            return True
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths


def given_key(scope: Scope) -> str | None:
    """Return the key a request carries: a bearer token, or x-api-key on Anthropic's routes."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if is_anthropic(scope["path"]):
        return headers.get("x-api-key")
    return None


def tenant_of(request: Request, cache_salt: str | None = None) -> str:
    """Return the namespace of a request's prefix cache: its key's identity and its salt."""
    tenant: str = request.scope.get(TENANT, "")
    return f"{tenant}\x1f{cache_salt}" if cache_salt else tenant
