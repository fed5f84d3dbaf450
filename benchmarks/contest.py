"""Contestants take turns, A B C A B C, each in its own process, so that drift hits all alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Long enough for the threads of the engine before to stop spinning, short against a measurement.
PAUSE_S = 0.1


class Rates(NamedTuple):
    """Tokens per second over the rounds of one contestant."""

    min: float
    median: float
    max: float


class Contestant:
    """A worker process with one loaded model."""

    def __init__(
        self,
        engine: str,
        model: str,
        threads: int,
        context: int,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Start the worker; loading goes on until the first answer."""
        command = [sys.executable, "-m", "benchmarks.worker", engine, model]
        command += ["--threads", str(threads), "--context", str(context)]
        for name, value in (options or {}).items():
            command += ["--option", f"{name}={value}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer; raise RuntimeError when the worker died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"the worker {self._process.args!r} ended with {self._process.wait()}"
            )
        decoded: dict[str, Any] = json.loads(answer)
        return decoded

    def close(self) -> None:
        """End the worker and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def alternate(
    contestants: Mapping[str, Contestant], rounds: int, **request: Any
) -> dict[str, list[float]]:
    """Let every contestant answer `request` in turn, `rounds` times after one warm-up round.

    Returns each one's seconds, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, contestant in contestants.items():
            time.sleep(PAUSE_S)
            taken = float(contestant.ask(**request)["seconds"])
            if round_number > 0:
                seconds[name].append(taken)
    return seconds


def rates(n_tokens: int, seconds: Sequence[float]) -> Rates:
    """Return tokens per second over rounds that each took `seconds` for `n_tokens`."""
    per_second = [n_tokens / taken for taken in seconds]
    return Rates(min(per_second), statistics.median(per_second), max(per_second))
