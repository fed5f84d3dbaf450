"""A server's request log, and what its requests would have taken with nothing else running.

One JSON object per line and finished request: counts, times and words of ours, never a text, a
key or an address. `capax serve --request-log` writes it, `bill` compares it with a profile: the
sum of T(p, o) over the sum of what was measured is 1 on a quiet server that answers one request
at a time, and falls as requests wait for each other or for strangers.

Prices are those of one call with one choice. A prompt of which the prefix cache had a part is
priced by the rest of it; what cannot be priced is counted by why.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.measuring.idealized_runtime import MAX_TOKENS, RuntimeModel

MAX_LINE_NBYTES = 2048  # also what the server writes at most
MAX_NAME_CHARS = 64  # of a model's name or a route; a character takes up to 12 bytes of JSON
MAX_SECONDS = 1e9
SAME_MOMENT_S = 1e-3  # requests that overlap by less followed each other
FINISHED = ("stop", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """One finished request. Counts and times are sums over its calls of the model.

    `seconds`: from the request's head to the last byte of its answer, HTTP and tokenising
    included; the other times are the engine's. `calls`: prompts that went to the model, `choices`:
    answers that were sampled from them. `finish_reason`: that of all choices, 'mixed' where they
    differ, '' without any.
    """

    time: float  # seconds since 1970 when it came
    route: str
    model: str
    status: int
    calls: int
    choices: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    finish_reason: str

    @property
    def engine_seconds(self) -> float:
        """What the model's calls took, without what they waited for their turn."""
        return self.prefill_seconds + self.decode_seconds

    def to_line(self) -> bytes:
        """Return the line, at most MAX_LINE_NBYTES long with its end."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        stamp = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="microseconds")
        values["time"] = stamp.replace("+00:00", "Z")
        for name in ("route", "model", "finish_reason"):
            values[name] = values[name][:MAX_NAME_CHARS]
        for name in ("seconds", "queue_seconds", "prefill_seconds", "decode_seconds"):
            values[name] = round(values[name], 6)
        return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ServedRequest:
        """Read a line. Raises ConfigError for what is none; keys it does not know are ignored."""
        try:
            document = json.loads(line)
            values = {f.name: document[f.name] for f in fields(cls)}
            values["time"] = datetime.fromisoformat(values["time"]).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
            raise ConfigError(f"this is no line of a request log: {type(e).__name__}") from None
        for f in fields(cls):
            if not _is_sane(values[f.name], str(f.type)):
                raise ConfigError(f"{f.name} of a line of the request log is no {f.type}")
            if f.type == "float":
                values[f.name] = float(values[f.name])
        request = cls(**values)
        if request.cached_tokens > request.prompt_tokens:
            raise ConfigError("more cached than prompt tokens in a line of the request log")
        return request


def _is_sane(value: Any, kind: str) -> bool:
    if kind == "str":
        return isinstance(value, str) and len(value) <= MAX_NAME_CHARS
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind == "int":
        return isinstance(value, int) and 0 <= value <= MAX_TOKENS
    most = MAX_SECONDS * 100  # seconds since 1970 are the largest
    return 0 <= value <= most and math.isfinite(value)


def read_log(path: Path) -> Iterator[ServedRequest | None]:
    """Yield a log's requests, None for a line that is none. Raises ConfigError if unreadable."""
    try:
        with path.open("rb") as file:
            is_rest = False  # of a line that is too long
            while line := file.readline(MAX_LINE_NBYTES):
                is_whole = line.endswith(b"\n")
                if not is_rest and (is_whole or len(line) < MAX_LINE_NBYTES):
                    yield _request(line)
                elif not is_rest:
                    yield None
                is_rest = not is_whole
    except OSError as e:
        raise ConfigError(f"cannot read the request log {path}: {e.strerror}") from None


def _request(line: bytes) -> ServedRequest | None:
    try:
        return ServedRequest.from_line(line)
    except ConfigError:
        return None


@dataclass(frozen=True, slots=True)
class Priced:
    """A request and T(p, o) of it, seconds."""

    request: ServedRequest
    idealized_s: float


@dataclass(frozen=True)
class Bill:
    """What the requests of a log took, and would have taken alone.

    `left_out`: why -> how many could not be priced. `n_overlapping`: priced requests that ran
    while another request did. `n_beyond`: those longer than any prompt of the profile.
    """

    priced: Sequence[Priced]
    left_out: Mapping[str, int]
    n_overlapping: int
    n_beyond: int

    @property
    def idealized_s(self) -> float:
        return math.fsum(p.idealized_s for p in self.priced)

    @property
    def measured_s(self) -> float:
        """From head to last byte, summed."""
        return math.fsum(p.request.seconds for p in self.priced)

    @property
    def ratio(self) -> float:
        """Idealized over measured: 1 on a quiet server, less where requests wait."""
        return self.idealized_s / self.measured_s

    @property
    def errors(self) -> list[float]:
        """|idealized / measured - 1| of each request: a sum hides opposite errors."""
        return [abs(p.idealized_s / p.request.seconds - 1) for p in self.priced]

    @property
    def median_error(self) -> float:
        return float(np.median(self.errors))

    @property
    def waited_s(self) -> float:
        """What requests waited for the engine, summed."""
        return math.fsum(p.request.queue_seconds for p in self.priced)

    @property
    def fixed_s(self) -> float:
        """Median over requests of what was neither waiting nor the engine: HTTP, tokenising."""
        return float(np.median([
            p.request.seconds - p.request.queue_seconds - p.request.engine_seconds
            for p in self.priced
        ]))  # fmt: skip

    @property
    def n_cached(self) -> int:
        """Requests of whose prompt the prefix cache had a part."""
        return sum(p.request.cached_tokens > 0 for p in self.priced)


def bill(
    requests: Iterable[ServedRequest | None], model: RuntimeModel, name: str | None = None
) -> Bill:
    """Price the requests of a log, those of the served model `name` if it is given.

    Raises ConfigError if the log has several models and none is named, or if nothing in it can
    be priced.
    """
    left_out: Counter[str] = Counter()
    seen: list[ServedRequest] = []
    for request in requests:
        if request is None:
            left_out["lines that are no request"] += 1
        else:
            seen.append(request)
    priced: list[Priced] = []
    for request in seen:
        reason = _obstacle(request, name)
        if reason is not None:
            left_out[reason] += 1
            continue
        p, o, cached = request.prompt_tokens, request.completion_tokens, request.cached_tokens
        priced.append(Priced(request, model.seconds(p, o, cached=cached)))
    if not priced:
        why = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or "it is empty"
        raise ConfigError(f"nothing in this log can be priced ({why})")
    names = sorted({p.request.model for p in priced})
    if len(names) > 1:
        raise ConfigError(
            f"the log has requests of {len(names)} models and a profile is of one; choose one "
            f"with --model, such as {names[0]!r}"
        )
    longest = max(model.g)
    n_beyond = sum(p.request.prompt_tokens - p.request.cached_tokens > longest for p in priced)
    busy = _overlapping([r for r in seen if r.calls])
    n_overlapping = sum(id(p.request) in busy for p in priced)
    return Bill(priced, dict(left_out), n_overlapping, n_beyond)


def _obstacle(request: ServedRequest, name: str | None) -> str | None:
    """Return why a request cannot be priced; None if it can."""
    if name is not None and request.model != name:
        return "of another model"
    if not request.calls:
        return "refused before the model" if request.status >= 400 else "without an answer to write"
    if request.finish_reason == "cancelled":
        return "cancelled"
    if request.status != 200 or request.finish_reason not in (*FINISHED, "mixed"):
        return "failed"
    if request.calls > 1 or request.choices > 1:
        return "of several calls or choices"
    if not request.completion_tokens or request.seconds <= 0:
        return "without a token or a time"
    return None


def _overlapping(requests: Sequence[ServedRequest]) -> set[int]:
    """Return the ids of request objects that ran while another one did."""
    found: set[int] = set()
    last: ServedRequest | None = None  # of those begun so far, the one that ends last
    for request in sorted(requests, key=lambda r: r.time):
        if last is not None and request.time < last.time + last.seconds - SAME_MOMENT_S:
            found |= {id(request), id(last)}
        if last is None or request.time + request.seconds > last.time + last.seconds:
            last = request
    return found
