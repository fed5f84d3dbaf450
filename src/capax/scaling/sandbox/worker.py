"""A sandboxed process that stays: questions and answers with one of our own modules.

For checks that read hostile text with large libraries (a symbolic comparison imports SymPy). A
question that takes too long ends the process; the next one starts a new one.
"""

from __future__ import annotations

import select
import socket
import sys
import sysconfig
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from capax.errors import SandboxError
from capax.scaling.sandbox import values
from capax.scaling.sandbox.process import Limits, SandboxedProcess


class WorkerTimeout(SandboxError):
    """A question was not answered in time; it says nothing about the answer."""


class Worker:
    """Answers of `answer(request)` of a module file, from a sandbox. Close or leave it to end it.

    `wall_s` of the limits is for one question, the rest for the life of the process. One question
    at a time: the lock is for the channel.
    """

    def __init__(self, module: Path, limits: Limits, *, start_s: float = 30.0) -> None:
        self._module = module
        self._limits = limits
        self._start_s = start_s
        self._process: SandboxedProcess | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(self, request: Any) -> Any:
        """Return the answer to a plain value.

        Raises WorkerTimeout if it takes too long, ends the process or is an exception,
        SandboxError if there is no isolation.
        """
        with self._lock:
            wait_s = self._limits.wall_s
            if self._channel is None:
                self._start()
                wait_s += self._start_s
            assert self._channel is not None
            try:
                self._channel.settimeout(wait_s)
                self._channel.sendall(values.dumps(request))
                line = self._read(wait_s)
                answer = values.loads(line)
            except (OSError, ValueError) as error:
                self._end()
                raise WorkerTimeout(f"the check was ended: {error}") from None
        if not isinstance(answer, tuple) or len(answer) != 2 or answer[0] != "value":
            raise WorkerTimeout(f"the check failed: {answer!r:.200}")
        return answer[1]

    def _read(self, wait_s: float) -> bytes:
        assert self._channel is not None
        data = bytearray()
        while not data.endswith(b"\n"):
            if not select.select([self._channel], [], [], wait_s)[0]:
                raise TimeoutError(f"no answer in {wait_s:g} s")
            more = self._channel.recv(1 << 16)
            if not more or len(data) > values.MAX_LINE_NBYTES:
                raise OSError("its process ended")
            data += more
        return bytes(data)

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
            self._process = SandboxedProcess(
                "worker", self._limits, theirs.fileno(),
                paths=[str(self._module.parent), *sorted(packages)], module=self._module.stem,
            )  # fmt: skip

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        process, self._channel, self._process = self._process, None, None
        if process is not None:
            process.end(0.2)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    from importlib.util import find_spec

    return package in sys.modules or find_spec(package) is not None
