"""Who spent what: tokens, seconds, floating-point operations and money, under hard caps.

A call reserves the most it could cost before it is sent, and settles what it did cost when it is
over. What is settled plus what is reserved never exceeds a cap, whatever fails in between: a
call whose outcome is unknown (a timeout, a stream cut off) is settled at what it reserved.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from capax.engine.outputs import Usage
from capax.errors import CapacityError, ConfigError

Status = Literal["ok", "refused", "unknown"]  # unknown: settled at the reservation


class BudgetExceeded(CapacityError):
    """A call could cost more than is left under a cap."""


@dataclass(frozen=True, slots=True)
class Price:
    """What an endpoint costs: money per million tokens, operations per token; 0 if unknown."""

    prompt_per_million: float = 0.0
    cached_per_million: float = 0.0
    completion_per_million: float = 0.0
    flops_per_token: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} is {value!r} but must be a number that is not negative")

    def money(self, usage: Usage) -> float:
        """Return what this usage costs."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.prompt_per_million
            + usage.cached_tokens * self.cached_per_million
            + usage.completion_tokens * self.completion_per_million
        ) / 1e6

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the most that so many tokens can cost."""
        dearest = max(self.prompt_per_million, self.cached_per_million)
        return (prompt_tokens * dearest + completion_tokens * self.completion_per_million) / 1e6

    def flops(self, usage: Usage) -> float:
        """Return the operations of this usage; cached tokens are free."""
        return (usage.total_tokens - usage.cached_tokens) * self.flops_per_token


@dataclass(frozen=True, slots=True)
class Entry:
    """One settled call. Seconds are of wall time; tokens of an `unknown` call are upper bounds."""

    endpoint: str
    purpose: str
    status: Status
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    seconds: float
    flops: float
    money: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over entries; `tokens` are prompt and completion tokens together."""

    n_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Reservation:
    """A call under way; `settle` it once, or it is settled as unknown."""

    tokens: int
    money: float
    usage: Usage | None = None
    status: Status = "unknown"

    def settle(self, usage: Usage) -> None:
        """Say what the call took."""
        self.usage, self.status = usage, "ok"

    def refuse(self) -> None:
        """Say that the endpoint turned the call away before it did any work."""
        self.usage, self.status = Usage(0, 0), "refused"


@dataclass
class Ledger:
    """Sums of settled calls, and caps on all of them together; safe from several threads.

    `max_tokens` counts prompt and completion tokens, `max_money` in the price's currency; None: no
    cap. `on_entry` is called with every settled call, one at a time: a run directory writes it
    down.
    """

    max_tokens: int | None = None
    max_money: float | None = None
    on_entry: Callable[[Entry], None] | None = None
    _reserved_tokens: int = field(default=0, init=False)
    _reserved_money: float = field(default=0.0, init=False)
    _totals: Totals = field(default_factory=Totals, init=False)
    _by_purpose: dict[str, Totals] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_money"):
            cap = getattr(self, name)
            if cap is not None and not cap >= 0:
                raise ConfigError(f"{name} is {cap!r} but must not be negative")

    @property
    def totals(self) -> Totals:
        """Sums over everything settled so far."""
        return self._totals

    @property
    def tokens_left(self) -> int | None:
        """Tokens that a new call could reserve; None without a cap."""
        with self._lock:
            if self.max_tokens is None:
                return None
            return self.max_tokens - self._totals.tokens - self._reserved_tokens

    @contextmanager
    def call(
        self,
        endpoint: str,
        purpose: str,
        price: Price,
        *,
        prompt_tokens: int,
        new_tokens: int,
        also: Ledger | None = None,
    ) -> Iterator[Reservation]:
        """Reserve the most a call can cost while the block runs, then settle it.

        `also`: a second ledger that the call is booked in, under its own caps. Raises
        BudgetExceeded, with nothing reserved, if that does not fit under all caps. An endpoint
        that takes more than was reserved is settled at what it took.
        """
        reservation = Reservation(prompt_tokens + new_tokens, price.most(prompt_tokens, new_tokens))
        ledgers = [self] if also is None or also is self else [self, also]
        _reserve_in(ledgers, reservation)
        started = time.monotonic()
        try:
            yield reservation
        finally:
            usage = reservation.usage or Usage(prompt_tokens, new_tokens)
            entry = Entry(
                endpoint,
                purpose,
                reservation.status,
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                time.monotonic() - started,
                price.flops(usage),
                price.money(usage),
            )
            for ledger in ledgers:
                ledger._settle(reservation, entry)

    def by_purpose(self) -> Mapping[str, Totals]:
        """Return the sums for each purpose."""
        with self._lock:
            return dict(self._by_purpose)

    def to_dict(self) -> dict[str, Any]:
        """Return caps and sums, ready for JSON."""
        return {
            "max_tokens": self.max_tokens,
            "max_money": self.max_money,
            "total": asdict(self._totals),
            "by_purpose": {name: asdict(t) for name, t in self.by_purpose().items()},
        }

    def _reserve(self, r: Reservation) -> None:
        with self._lock:
            tokens = self._totals.tokens + self._reserved_tokens + r.tokens
            money = self._totals.money + self._reserved_money + r.money
            if self.max_tokens is not None and tokens > self.max_tokens:
                left = self.max_tokens - tokens + r.tokens
                raise BudgetExceeded(
                    f"the call may take {r.tokens:,} tokens but {left:,} of {self.max_tokens:,} "
                    "are left; raise the cap or lower max_tokens"
                )
            if self.max_money is not None and money > self.max_money:
                left_money = self.max_money - money + r.money
                raise BudgetExceeded(
                    f"the call may cost {r.money:.6g} but {left_money:.6g} of "
                    f"{self.max_money:.6g} is left; raise the cap or lower max_tokens"
                )
            self._reserved_tokens += r.tokens
            self._reserved_money += r.money

    def _release(self, r: Reservation) -> None:
        with self._lock:
            self._reserved_tokens -= r.tokens
            self._reserved_money -= r.money

    def _settle(self, r: Reservation, entry: Entry) -> None:
        with self._lock:
            self._reserved_tokens -= r.tokens
            self._reserved_money -= r.money
            self._totals = _plus(self._totals, entry)
            so_far = self._by_purpose.get(entry.purpose, Totals())
            self._by_purpose[entry.purpose] = _plus(so_far, entry)
            if self.on_entry is not None:
                self.on_entry(entry)


def _reserve_in(ledgers: list[Ledger], r: Reservation) -> None:
    """Reserve in all of them or, raising BudgetExceeded, in none."""
    for i, ledger in enumerate(ledgers):
        try:
            ledger._reserve(r)
        except BudgetExceeded:
            for earlier in ledgers[:i]:
                earlier._release(r)
            raise


def _plus(t: Totals, e: Entry) -> Totals:
    return Totals(
        t.n_calls + 1,
        t.prompt_tokens + e.prompt_tokens,
        t.completion_tokens + e.completion_tokens,
        t.cached_tokens + e.cached_tokens,
        t.seconds + e.seconds,
        t.flops + e.flops,
        t.money + e.money,
    )
