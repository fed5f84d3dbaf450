"""The program of a sandboxed process. Run by path with `python -P -s -S`; reads its job from stdin.

Three processes: the starter (killed at the deadline by the host), process 1 of the new namespaces,
and the one that runs the code. The job's role says which side that is:

- candidate: executes a program, then answers calls of its function that come through the channel;
- judge: executes tests in which that function is a stand-in that asks through the channel, and
  writes one verdict. Expected values and assertions exist on this side only.
- worker: answers requests one after the other with a function of an installed module.

The status line the starter writes is the host's only source of "isolated" and "how did it end".
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lockdown  # type: ignore[import-not-found]
import values  # type: ignore[import-not-found]

del sys.path[0]

Job = dict[str, Any]


class ChannelError(BaseException):
    """The other side is gone or breaks the protocol; no `except Exception` catches it."""


class Channel:
    """Lines over a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def send(self, message: Any) -> None:
        data = values.dumps(message)
        if len(data) > values.MAX_LINE_NBYTES:
            raise ValueError("the value is too large")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            raise ChannelError("the other side is gone") from None

    def receive(self) -> Any:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > values.MAX_LINE_NBYTES:
                raise ChannelError("the other side sent too much")
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:
                data = b""
            if not data:
                raise ChannelError("the other side is gone")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return values.loads(line)
        except ValueError:
            raise ChannelError("the other side sent no plain value") from None


class Nowhere(io.TextIOBase):
    """Standard output of code under test."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def spelled(error: BaseException) -> str:
    """Return an exception as one line, never more than 300 characters."""
    try:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    except BaseException:  # noqa: BLE001  # its __str__ is the program's
        return "an exception that cannot be shown"


# --- the code under test ------------------------------------------------------------------------


def candidate(job: Job) -> None:
    """Execute the program, then answer calls until the channel ends."""
    channel = Channel(job["channel"])
    try:
        names: dict[str, Any] = {"__name__": "program"}
        exec(compile(job["program"], "<program>", "exec", dont_inherit=True), names)
        function = names[job["entry_point"]]
    except BaseException as error:  # noqa: BLE001  # also SystemExit is an answer
        channel.send(("failed", spelled(error), type(error).__name__))
        return
    channel.send(("ready",))
    while True:
        number, arguments, named = channel.receive()
        try:
            channel.send((number, "value", function(*arguments, **named)))
        except ChannelError:
            raise
        except BaseException as error:  # noqa: BLE001
            channel.send((number, "raised", spelled(error), type(error).__name__))


# --- the judge ----------------------------------------------------------------------------------


def judge(job: Job) -> None:
    """Execute the tests against the stand-in; write the verdict."""
    channel = Channel(job["channel"])
    verdict: dict[str, Any] = {"kind": "passed", "detail": "", "calls": 0}
    try:
        first = channel.receive()
        if not isinstance(first, tuple) or first[0] != "ready":
            kind = first[2] if isinstance(first, tuple) and len(first) == 3 else ""
            raise _Raised("memory" if kind == "MemoryError" else "error", str(first[1]))
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["preamble"], "<preamble>", "exec", dont_inherit=True), names)
        function = _stand_in(channel, verdict)
        names[job["entry_point"]] = function
        exec(compile(job["tests"], "<tests>", "exec", dont_inherit=True), names)
        if "check" in names:
            names["check"](function)
        if verdict["calls"] == 0:
            verdict.update(kind="failed", detail="the tests never called the function")
    except AssertionError as error:
        verdict.update(kind="failed", detail=spelled(error))
    except _Raised as error:
        verdict.update(kind=error.kind, detail=str(error))
    except ChannelError as error:
        verdict.update(kind="gone", detail=str(error))
    except BaseException as error:  # noqa: BLE001
        verdict.update(kind="error", detail=spelled(error))
    os.write(job["verdict"], json.dumps(verdict).encode())


class _Raised(BaseException):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _stand_in(channel: Channel, verdict: dict[str, Any]) -> Callable[..., Any]:
    def function(*arguments: Any, **named: Any) -> Any:
        verdict["calls"] += 1
        number = os.urandom(8).hex()  # an answer made before the question has another number
        channel.send((number, arguments, named))
        answer = channel.receive()
        if not isinstance(answer, tuple) or len(answer) < 3 or answer[0] != number:
            raise ChannelError("the other side answered what was not asked")
        if answer[1] == "value":
            return answer[2]
        if answer[-1] == "MemoryError":
            raise _Raised("memory", str(answer[2]))
        kind = getattr(builtins, str(answer[-1]), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not AssertionError:
            try:
                error = kind(str(answer[2]).removeprefix(f"{kind.__name__}: "))
            except TypeError:  # UnicodeDecodeError and its like take more
                error = RuntimeError(str(answer[2]))
            raise error
        raise _Raised("error", str(answer[2]))

    return function


# --- a worker for checks that are ours but read hostile text --------------------------------


def prepare_worker(job: Job) -> Callable[[Any], Any]:
    """Import what the worker needs, before the file system is gone."""
    sys.path += job["paths"]
    module = importlib.import_module(job["module"])
    return module.answer  # type: ignore[no-any-return]


def worker(job: Job, answer: Callable[[Any], Any]) -> None:
    """Answer requests until the channel ends."""
    channel = Channel(job["channel"])
    while True:
        request = channel.receive()
        try:
            channel.send(("value", answer(request)))
        except ChannelError:
            raise
        except BaseException as error:  # noqa: BLE001
            channel.send(("raised", spelled(error)))


# --- processes ------------------------------------------------------------------------------------


def main() -> None:
    """Lock down, run the job, and say how it ended."""
    job: Job = json.loads(sys.stdin.buffer.read())
    status = job["status"]
    try:
        answer = prepare_worker(job) if job["role"] == "worker" else None
        lockdown.enter_namespaces()
        lockdown.die_with_parent()
        if os.getppid() != job["parent"]:
            os._exit(1)
        child = os.fork()
        if child == 0:
            _first(job, status, answer)
    except (lockdown.LayerError, OSError, ImportError) as error:
        _tell(status, {"setup": str(error)})
        os._exit(1)
    _, ended = os.waitpid(child, 0)
    _tell(status, {"ended": ended})
    os._exit(0)


def _first(job: Job, status: int, answer: Callable[[Any], Any] | None) -> None:
    """Be process 1: finish the isolation, start the code, end when it ends."""
    try:
        library = os.path.dirname(os.__file__)
        readable = lockdown.enter_empty_root([library, *job["paths"]], job["tmp_nbytes"])
        lockdown.become_nobody()
        lockdown.die_with_parent()
        lockdown.restrict_files(readable)
        child = os.fork()
        if child == 0:
            lockdown.limit(job["cpu_s"], job["memory_nbytes"], job["tmp_nbytes"])
            lockdown.filter_system_calls()
    except (lockdown.LayerError, OSError) as error:
        _tell(status, {"setup": str(error)})
        os._exit(1)
    if child:
        for descriptor in (job["channel"], job["verdict"]):
            if descriptor is not None:
                os.close(descriptor)
        _, ended = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else 128 + os.WTERMSIG(ended))
    _tell(status, {"isolated": True})
    os.close(status)
    sys.stdout = sys.stderr = Nowhere()
    try:
        if job["role"] == "candidate":
            candidate(job)
        elif job["role"] == "judge":
            judge(job)
        elif answer is not None:
            worker(job, answer)
    except ChannelError:
        os._exit(3)
    finally:
        os._exit(0)


def _tell(status: int, line: dict[str, Any]) -> None:
    os.write(status, json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
