"""Render untrusted templates in a helper process that may be killed at any time.

One helper serves the whole process. It starts with the first untrusted template and stays,
so later renders cost a round trip on two pipes (well under a millisecond). A template that
loops, eats memory or kills its helper costs that one request an error; the next render
gets a fresh helper.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capax.errors import ConfigError, FileFormatError, SandboxError
from capax.files import template_engine
from capax.files.template_engine import CPU_SECONDS, LENGTH, MAX_OUTPUT_CHARS, MEMORY_NBYTES

# Wall time includes waiting for a processor, which a busy machine may make long; the CPU
# limit inside the helper is the one that normally stops a loop.
WALL_SECONDS = 10.0
_MAX_REPLY_NBYTES = 6 * MAX_OUTPUT_CHARS + 1024  # a character takes at most \uXXXX in JSON


class TemplateHelper:
    """The helper process and the pipes to it. One render at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # keeps one request and its reply together
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # a forked child must not talk on its parent's pipes

    def start(self) -> None:
        """Start the helper now, without waiting for it, so that it is ready later."""
        with self._lock:
            self._running()

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        """Return the rendered text.

        Raises SandboxError if the template was stopped, FileFormatError if it is broken,
        ConfigError if it does not accept the messages.
        """
        request = json.dumps({"template": template, "context": context}).encode()
        with self._lock:
            reply = self._ask(request)
        fields = json.loads(reply)
        if "text" in fields:
            return str(fields["text"])
        if "refused" in fields:
            raise ConfigError(
                f"the chat template does not accept the messages: {fields['refused']}"
            )
        if "stopped" in fields:
            raise SandboxError(f"the chat template was stopped: {fields['stopped']}")
        raise FileFormatError(f"the chat template cannot be rendered: {fields['failed']}")

    def close(self) -> None:
        """End the helper, if there is one."""
        with self._lock:
            self._discard()

    def _ask(self, request: bytes) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            template_engine.write_frame(process.stdin.fileno(), request)
            return _read_reply(process.stdout.fileno(), time.monotonic() + WALL_SECONDS)
        except TimeoutError:
            self._discard()
            raise SandboxError(
                f"the chat template was stopped: it takes more than {WALL_SECONDS:g} s"
            ) from None
        except (EOFError, BrokenPipeError):
            raise SandboxError(f"the chat template was stopped: {self._obituary()}") from None
        except BaseException:  # Ctrl-C between request and reply: the pipes are out of step
            self._discard()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and self._owner == os.getpid() and process.poll() is None:
            return process
        self._discard()
        command = [sys.executable, "-I", "-S", "-X", "utf8", template_engine.__file__]
        try:
            process = subprocess.Popen(
                [*command, *_places_of_jinja()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                bufsize=0,
            )
        except OSError as error:
            raise SandboxError(f"cannot start the template helper: {error.strerror}") from None
        self._process, self._owner = process, os.getpid()
        return process

    def _obituary(self) -> str:
        """Say what the helper died of, and forget it."""
        process = self._process
        assert process is not None
        code = process.wait()
        self._discard()
        if code == -signal.SIGPROF:
            return f"it computes for more than {CPU_SECONDS:g} s"
        return f"its process died with code {code}, mostly for want of {MEMORY_NBYTES >> 20} MiB"

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        if self._owner == os.getpid():
            process.kill()
            process.wait()
        else:
            process.returncode = 0  # not our child: nothing to wait for


def _read_reply(descriptor: int, deadline: float) -> bytes:
    head = _read_until(descriptor, LENGTH.size, deadline)
    (nbytes,) = LENGTH.unpack(head)
    if nbytes > _MAX_REPLY_NBYTES:
        raise EOFError  # no helper of ours says that
    return _read_until(descriptor, nbytes, deadline)


def _read_until(descriptor: int, nbytes: int, deadline: float) -> bytes:
    data = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) < nbytes:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, min(nbytes - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _places_of_jinja() -> list[str]:
    """Return the directories that hold Jinja and MarkupSafe, without importing them."""
    places = []
    for package in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SandboxError(f"{package} is not installed: run 'pip install {package}'")
        places.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(places))


HELPER = TemplateHelper()
atexit.register(HELPER.close)
