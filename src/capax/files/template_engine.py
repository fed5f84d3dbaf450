"""The one place that makes a Jinja environment, and the helper process that uses it.

Chat templates come with model files, so they are untrusted programs. Jinja's immutable
sandbox keeps them from reaching Python objects; it does not keep them from looping or
from filling the memory. So they render in a helper process under kernel limits: CPU time
by a profiling timer whose signal kills the process, memory by RLIMIT_AS, and no files,
children or core dumps. The parent (`template_helper`) starts another one when it dies.

Run as a script this file is the helper. It imports only the standard library and Jinja,
so that it starts in some 60 ms whatever the rest of capax imports.

Frames on the pipes: 4 bytes big-endian length, then JSON in UTF-8.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0
MEMORY_NBYTES = 256 << 20
MAX_OUTPUT_CHARS = 16 << 20
MAX_CACHED_TEMPLATES = 16

LENGTH = struct.Struct(">I")


class RefusedMessages(Exception):
    """The template called `raise_exception`: it does not accept these messages."""


class OutputTooLong(Exception):
    """The template wrote more than MAX_OUTPUT_CHARS characters."""


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    """Return the environment of all templates, with what transformers offers to them."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for training; here it is only a block."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own spelling

        def parse(self, parser: Any) -> Any:
            """Return what is inside the block."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    del made.globals["lipsum"]  # random text is no part of a prompt
    return made


@lru_cache(maxsize=MAX_CACHED_TEMPLATES)
def _compiled(source: str) -> Template:
    return environment().from_string(source)


def render(source: str, context: Mapping[str, Any]) -> str:
    """Render `source`; raises whatever Jinja or the template raises."""
    parts: list[str] = []
    n_chars = 0
    for part in _compiled(source).generate(**context):
        n_chars += len(part)
        if n_chars > MAX_OUTPUT_CHARS:
            raise OutputTooLong
        parts.append(part)
    return "".join(parts)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object = "") -> None:
    raise RefusedMessages(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


# ---- the helper process ----------------------------------------------------------------------


def serve(requests: int, replies: int) -> None:
    """Answer render requests on two descriptors until the first one is closed."""
    environment()
    _limit_this_process()
    while (request := read_frame(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF kills
        reply = _answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(replies, reply)


def _limit_this_process() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_NBYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _answer(request: bytes) -> bytes:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    kind, text = "failed", ""
    try:
        fields = json.loads(request)
        kind, text = "text", render(fields["template"], fields["context"])
        return json.dumps({kind: text}).encode()
    except RefusedMessages as error:
        kind, text = "refused", str(error)
    except OutputTooLong:
        kind, text = "stopped", f"it writes more than {MAX_OUTPUT_CHARS:,} characters"
    except SecurityError as error:
        kind, text = "stopped", f"it reaches for what the sandbox forbids ({error})"
    except RecursionError:
        kind, text = "stopped", "it recurses too deeply"
    except MemoryError:
        kind, text = "stopped", f"it needs more than {MEMORY_NBYTES >> 20} MiB of memory"
    except OverflowError as error:
        kind, text = "stopped", str(error)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        text = f"{error.message}" + (f" (line {line})" if line else "")
    except Exception as error:  # noqa: BLE001 - whatever the template's expressions raise
        text = f"{type(error).__name__}: {error}"
    return json.dumps({kind: text[:500]}).encode()


def read_frame(descriptor: int) -> bytes | None:
    """Return the next frame, or None when the other side has closed the pipe."""
    head = _read_exactly(descriptor, LENGTH.size)
    return None if head is None else _read_exactly(descriptor, LENGTH.unpack(head)[0])


def _read_exactly(descriptor: int, nbytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < nbytes:
        chunk = os.read(descriptor, min(nbytes - len(data), 1 << 16))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def write_frame(descriptor: int, payload: bytes) -> None:
    """Write a frame whole."""
    view = memoryview(LENGTH.pack(len(payload)) + payload)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])  # where the parent found Jinja
    serve(0, 1)
