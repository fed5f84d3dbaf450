"""Start and end one sandboxed process; the host's side of `inside`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from capax.errors import ConfigError, SandboxError

_INSIDE = Path(__file__).with_name("inside.py")
_MAX_STATUS_NBYTES = 1 << 16
Role = Literal["candidate", "judge", "worker"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What code may take: `wall_s` in all, `cpu_s` and `memory_nbytes` (address space) per process.

    `tmp_nbytes` bounds all files together, which are in memory and gone afterwards.
    """

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_nbytes: int = 1 << 30
    tmp_nbytes: int = 16 << 20

    def __post_init__(self) -> None:
        for name, low, high in (
            ("wall_s", 0.1, 3600),
            ("cpu_s", 1, 3600),
            ("memory_nbytes", 64 << 20, 1 << 40),
            ("tmp_nbytes", 1 << 16, 1 << 34),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value} but must be {low:,} to {high:,}")


class SandboxedProcess:
    """A locked-down interpreter with a channel, and for a judge a pipe for its verdict.

    Close it: that ends everything it started.
    """

    def __init__(
        self,
        role: Role,
        limits: Limits,
        channel: int,
        *,
        verdict: int | None = None,
        paths: Sequence[str] = (),
        **job: Any,
    ) -> None:
        if sys.platform != "linux":
            raise SandboxError(_refusal(f"it is made for Linux, this is {sys.platform}"))
        self._status, status = os.pipe()
        keep = [channel, status, *([] if verdict is None else [verdict])]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", str(_INSIDE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
                pass_fds=keep,
                start_new_session=True,
                cwd="/",
            )
        except OSError as e:
            os.close(self._status)
            raise SandboxError(f"no process for generated code: {e.strerror}") from None
        finally:
            os.close(status)
        settings = {
            "role": role, "channel": channel, "verdict": verdict, "status": status,
            "paths": list(paths), "parent": os.getpid(), **asdict(limits), **job,
        }  # fmt: skip
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the status says why
            self._process.stdin.write(json.dumps(settings).encode())
            self._process.stdin.close()

    def end(self, wait_s: float = 0.0) -> int | None:
        """Kill it unless it ends within `wait_s`; returns how it ended itself, as wait status.

        Raises SandboxError if it never was isolated: then nothing was run.
        """
        killed = False
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            killed = True
        lines = [json.loads(line) for line in self._read_status().splitlines()]
        facts: dict[str, Any] = {name: value for line in lines for name, value in line.items()}
        if "setup" in facts:
            raise SandboxError(_refusal(facts["setup"]))
        if not facts.get("isolated") and not killed:
            raise SandboxError(_refusal("the sandbox ended before it was isolated"))
        return facts.get("ended")

    def _read_status(self) -> bytes:
        os.set_blocking(self._status, False)
        try:
            return os.read(self._status, _MAX_STATUS_NBYTES)
        except BlockingIOError:
            return b""
        finally:
            os.close(self._status)


def _refusal(reason: str) -> str:
    return (
        f"generated code is not run, because it cannot be isolated here ({reason}); it takes Linux "
        "on x86-64 with namespaces, Landlock and seccomp: see 'capax doctor' and docs/sandbox.md"
    )
