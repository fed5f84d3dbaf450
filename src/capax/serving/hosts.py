"""Which hosts and origins may ask: against DNS rebinding and requests forged by web pages.

A page of a stranger can point its own name at 127.0.0.1, and can send simple requests
anywhere. So the Host header must name this server (a loopback name, the address it listens
on, an address literal where it listens to the network, or a configured name), an Origin must
be this server or a configured one, and a preflight is answered for configured origins only.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from capax.serving.config import ServerConfig
from capax.serving.errors import ApiError
from capax.serving.state import Server

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PORT = re.compile(r"[0-9]{1,5}")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+( *, *[A-Za-z0-9-]+)*")
_LOOPBACK_V4 = ipaddress.ip_network("127.0.0.0/8")
_LOOPBACK_V6 = ipaddress.ip_address("::1")
PREFLIGHT_MAX_AGE_S = 600
EXPOSED = "x-request-id, X-Capax-Ignored-Params, Retry-After, retry-after-ms"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_host(value: str) -> str | Address | None:
    """Return what a Host header names, without its port: a lower-case name or an address.

    None for what is neither: user information, a trailing dot, odd characters, a bad port.
    """
    value = value.strip(" \t")
    if value.startswith("["):
        literal, closing, rest = value[1:].partition("]")
        if not closing or not _is_port_suffix(rest):
            return None
        try:
            return ipaddress.IPv6Address(literal)
        except ValueError:
            return None
    name, colon, port = value.partition(":")
    if colon and not _PORT.fullmatch(port):
        return None
    try:
        return ipaddress.IPv4Address(name)
    except ValueError:
        name = name.lower()
        return name if _NAME.fullmatch(name) else None


def _is_port_suffix(text: str) -> bool:
    return text == "" or (text[0] == ":" and _PORT.fullmatch(text[1:]) is not None)


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on can only be reached from this machine."""
    named = parse_host(f"[{host}]" if ":" in host else host)
    return named == "localhost" or (not isinstance(named, str | None) and _is_loopback(named))


def _is_loopback(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address in _LOOPBACK_V4
    return address == _LOOPBACK_V6


class HostList:
    """The hosts this server answers to."""

    def __init__(self, config: ServerConfig) -> None:
        self._listens_to_network = not is_loopback(config.host)
        configured = (*config.allowed_hosts, config.host)
        named = (parse_host(f"[{h}]" if h.count(":") > 1 else h) for h in configured)
        self._names = {"localhost", *(name for name in named if name is not None)}

    def allows(self, header: str) -> bool:
        """Whether a Host header names this server."""
        host = parse_host(header)
        if host is None or (not isinstance(host, str) and host.is_unspecified):
            return False
        if host in self._names:
            return True
        if isinstance(host, str):
            return False
        # A rebound name needs a name: a literal address cannot be one.
        return self._listens_to_network or _is_loopback(host)


class HostGuard:
    """Refuses foreign hosts and origins with 403, and answers OPTIONS."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._hosts = HostList(server.config)
        self._origins = frozenset(server.config.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        named = headers.getlist("host")
        if len(named) != 1 or not self._hosts.allows(named[0]):
            shown = named[0] if len(named) == 1 else f"{len(named)} hosts"
            raise ApiError(
                403,
                f"the Host header names {shown!r:.100}, which is not this server; "
                "add it with --allowed-host",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        allowed = origin is not None and (origin in self._origins or "*" in self._origins)
        if scope["method"] == "OPTIONS":
            await self._answer_options(origin if allowed else None, headers, send)
            return
        if origin is not None and not allowed and not _is_same(origin, named[0]):
            if scope["method"] not in ("GET", "HEAD"):
                raise ApiError(
                    403,
                    f"the origin {origin!r:.100} may not use this server; "
                    "allow it with --cors-origin",
                    code="host_not_allowed",
                )
        elif origin is not None and allowed:
            send = self._with_cors(origin, send)
        await self._app(scope, receive, send)

    def _with_cors(self, origin: str, send: Send) -> Send:
        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = EXPOSED
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                headers.add_vary_header("Origin")
            await send(message)

        return send_with_cors

    async def _answer_options(self, origin: str | None, headers: Headers, send: Send) -> None:
        """A preflight, or curiosity: 204, with permission for a configured origin only."""
        answer = MutableHeaders({"Allow": "GET, HEAD, POST, OPTIONS", "Vary": "Origin"})
        if origin is not None:
            answer["Access-Control-Allow-Origin"] = origin
            answer["Access-Control-Allow-Methods"] = "GET, POST"
            answer["Access-Control-Max-Age"] = str(PREFLIGHT_MAX_AGE_S)
            wanted = headers.get("access-control-request-headers", "")
            if _HEADER_NAMES.fullmatch(wanted):
                answer["Access-Control-Allow-Headers"] = wanted
        await send({"type": "http.response.start", "status": 204, "headers": answer.raw})
        await send({"type": "http.response.body", "body": b""})


def _is_same(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower()
