"""Run a program's tests without trusting the program, the tests or the answers.

Two processes, each isolated (`lockdown`): one holds the program, the other the tests. They exchange
plain values (`values`), so nothing the program does to its own interpreter - patched builtins, an
`__eq__` that always agrees, `os._exit(0)`, a forged message - makes a test pass that a constant
return value would not. Only the judge's verdict is believed, and only if its process was isolated.
What a program changes in its arguments is not seen by the tests: values are copied.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import time
from typing import Literal, NamedTuple

from capax.errors import SandboxError
from capax.scaling.sandbox.process import Limits, SandboxedProcess

Kind = Literal["passed", "failed", "error", "timeout", "memory", "crashed"]
MAX_SOURCE_CHARS = 1_000_000
_MAX_VERDICT_NBYTES = 1 << 16
_SETTLE_S = 2.0  # for the other process to end after a verdict


class Result(NamedTuple):
    """How it went: `passed`; `failed` by an assertion; `error`, an exception; or it was ended."""

    kind: Kind
    detail: str
    n_calls: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.kind == "passed"


def run_tests(
    program: str, tests: str, entry_point: str, *, preamble: str = "", limits: Limits | None = None
) -> Result:
    """Execute `program`, and `tests` with its function `entry_point`, in separate processes.

    `tests` either define `check(candidate)` or assert at the top; the function has to be called at
    least once. `preamble`: what tests may use besides. Raises SandboxError without isolation.
    """
    limits = limits or Limits()
    began = time.monotonic()
    if len(program) > MAX_SOURCE_CHARS:
        return Result("error", f"the program has {len(program):,} characters", 0, 0.0)
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    processes: list[SandboxedProcess] = []
    text = b""
    try:
        processes.append(
            SandboxedProcess(
                "candidate", limits, theirs.fileno(), program=program, entry_point=entry_point
            )
        )
        processes.append(
            SandboxedProcess(
                "judge", limits, ours.fileno(), verdict=writing, tests=tests,
                preamble=preamble, entry_point=entry_point,
            )
        )  # fmt: skip
        ours.close()
        theirs.close()
        os.close(writing)
        writing = -1
        text = _read_until(reading, began + limits.wall_s)
    finally:
        ours.close()
        theirs.close()
        os.close(reading)
        if writing >= 0:
            os.close(writing)
        endings = _end(processes, _SETTLE_S if text else 0.0)
    return _result(text, endings, time.monotonic() - began)


def _read_until(descriptor: int, deadline: float) -> bytes:
    """Return what comes until the end; nothing if that is not before the deadline."""
    data = b""
    while len(data) < _MAX_VERDICT_NBYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return b""
        more = os.read(descriptor, 1 << 16)
        if not more:
            break
        data += more
    return data or b"{}"


def _end(processes: list[SandboxedProcess], wait_s: float) -> list[int | None]:
    """End all, in any case, and return how they ended by themselves."""
    endings: list[int | None] = []
    failures: list[SandboxError] = []
    for process in processes:
        try:
            endings.append(process.end(wait_s))
        except SandboxError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return endings


def _result(text: bytes, endings: list[int | None], seconds: float) -> Result:
    if not text:
        return Result("timeout", "the wall time is over", 0, seconds)
    verdict = json.loads(text)
    if not verdict:  # the judge ended without one, so it is the tests that broke it
        return Result("crashed", f"the tests {_how(endings[1])[1]}", 0, seconds)
    kind, detail, n_calls = verdict["kind"], verdict["detail"], verdict["calls"]
    if kind == "gone":
        kind, how = _how(endings[0])
        detail = f"the program {how}"
    return Result(kind, detail, n_calls, seconds)


def _how(ended: int | None) -> tuple[Kind, str]:
    """Say how a process ended; `ended` is the wait status of the one that watched it."""
    if ended is None:
        return "crashed", "had to be ended"
    code = os.waitstatus_to_exitcode(ended)
    if code in (128 + signal.SIGXCPU, 128 + signal.SIGKILL):
        return "timeout", "used its CPU seconds, or was killed"
    if code > 128:
        return "crashed", f"was ended by signal {code - 128}"
    return "crashed", f"left with code {code}"


@functools.cache
def check_isolation() -> str:
    """Return the layers in use, after running something. Raises SandboxError if one is missing."""
    result = run_tests("def f(): return 1", "assert f() == 1", "f", limits=Limits(wall_s=20.0))
    if not result.passed:
        raise SandboxError(f"the sandbox does not work here: {result.kind}, {result.detail}")
    return "namespaces, empty root, Landlock, seccomp, limits"
