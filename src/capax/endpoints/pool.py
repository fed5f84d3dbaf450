"""Several workers behind one endpoint: Ray actors, each with a model or a server of its own.

    async with RayPool([EngineWorker("smollm2-135m", threads=1)] * 2, ledger=ledger) as pool: ...

A request goes, with all its choices, to the worker that has the fewest under way. Seeds belong to
requests, so the answer does not depend on who gives it. The ledger stays with the caller: what a
call could take is reserved before it is sent, so no race between workers can exceed a cap. When a
worker dies its calls are settled at what they reserved, since nobody knows what they took, and go
to the others.

Needs `capax[ray]`. Without an address, given or in RAY_ADDRESS, a cluster of this machine alone is
started, on the loopback interface and without a dashboard, and stopped again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from capax import errors
from capax.endpoints.endpoint import Completion, Endpoint, GenerateRequest, Message, TokenScores
from capax.endpoints.ledger import Ledger, Price, Reservation
from capax.engine.outputs import Usage
from capax.errors import CapaxError, ConfigError, EndpointError

T = TypeVar("T")
OBJECT_STORE_NBYTES = 100 << 20  # requests and answers are small
MAX_WORKERS = 256
MAX_CALLS = 4096  # of a worker at a time


# --- workers ------------------------------------------------------------------------------


class Worker(Protocol):
    """Opens an endpoint in the process of an actor."""

    def open(self) -> Endpoint: ...


@dataclass(frozen=True)
class EngineWorker:
    """A model loaded by the worker. `threads`: of this worker alone."""

    model: str
    threads: int = 1
    memory: int | None = None
    ctx_size: int | None = None
    n_sequences: int = 4
    parallel: int = 16

    def open(self) -> Endpoint:
        from capax import LLM
        from capax.endpoints.local import LocalEndpoint

        return LocalEndpoint(
            LLM(
                self.model, threads=self.threads, memory=self.memory, ctx_size=self.ctx_size,
                n_sequences=self.n_sequences, parallel=self.parallel,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class ServerWorker:
    """An OpenAI-compatible server that the worker asks."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)

    def open(self) -> Endpoint:
        from capax.endpoints.http import HTTPEndpoint

        return HTTPEndpoint(self.base_url, self.model, api_key=self.api_key)


class _Refusal(NamedTuple):
    """An error of the worker's endpoint: its class in `capax.errors`, and what it said."""

    kind: str
    message: str

    def error(self) -> CapaxError:
        kind = getattr(errors, self.kind, EndpointError)
        is_ours = isinstance(kind, type) and issubclass(kind, CapaxError)
        return (kind if is_ours else EndpointError)(self.message)


class _Actor:
    """What runs in a worker's process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._endpoint: Endpoint | None = None

    async def open(self) -> tuple[str, int, int] | _Refusal:
        """Load; returns name, most choices of a request, and the process id."""
        try:
            endpoint = self._worker.open()
            entered = endpoint.__aenter__()  # type: ignore[attr-defined]  # both kinds are contexts
            self._endpoint = await entered
        except CapaxError as e:
            return _Refusal(type(e).__name__, str(e))
        return endpoint.name, endpoint.max_choices, os.getpid()

    async def generate(self, request: GenerateRequest) -> Completion | _Refusal:
        return await self._do(lambda endpoint: endpoint.generate(request))

    async def count_prompt(self, prompt: str | Sequence[Message]) -> int | _Refusal:
        return await self._do(lambda endpoint: endpoint.count_prompt(prompt))

    async def score(self, text: str) -> TokenScores | _Refusal:
        return await self._do(lambda endpoint: endpoint.score(text))

    async def _do(self, call: Callable[[Endpoint], Awaitable[T]]) -> T | _Refusal:
        assert self._endpoint is not None  # opened before anything is asked
        try:
            return await call(self._endpoint)
        except CapaxError as e:
            return _Refusal(type(e).__name__, str(e))


# --- the pool -----------------------------------------------------------------------------


@dataclass
class _Member:
    actor: Any
    name: str
    max_choices: int
    pid: int
    n_choices: int = 0  # under way
    is_alive: bool = True


class RayPool:
    """Workers of one model as an endpoint. Enter it as an async context.

    `address`: of a running cluster. `price` is booked by the pool; workers keep no books.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        address: str | None = None,
        ledger: Ledger | None = None,
        price: Price | None = None,
    ) -> None:
        if not 1 <= len(workers) <= MAX_WORKERS:
            raise ConfigError(f"a pool has 1 to {MAX_WORKERS} workers, not {len(workers)}")
        self._workers = list(workers)
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._ledger = ledger or Ledger()
        self._price = price or Price()
        self._members: list[_Member] = []
        self._is_ours = False
        self._ray: Any = None

    @property
    def name(self) -> str:
        return f"{self._members[0].name}x{len(self._members)}" if self._members else "pool"

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def max_choices(self) -> int:
        return min(m.max_choices for m in self._members)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [m.pid for m in self._members if m.is_alive]

    async def generate(self, request: GenerateRequest) -> Completion:
        """Complete a prompt. Raises as every endpoint, EndpointError when no worker is left."""
        if request.params.max_tokens is None:
            raise ConfigError("a pool needs max_tokens: what a call could take is reserved first")
        plain = replace(request, ledger=None)  # books stay here

        async def call(member: _Member, booked: Reservation) -> Completion:
            found: Completion = await self._ask(member, member.actor.generate.remote(plain))
            booked.settle(found.usage)
            return found

        size = await self.count_prompt(request.prompt)
        n = request.params.n
        return await self._booked(
            request.purpose, size, n * request.params.max_tokens, n, request.ledger, call
        )

    async def count_prompt(self, prompt: str | Sequence[Message]) -> int:
        while True:
            member = self._least_loaded()
            try:
                size: int = await self._ask(member, member.actor.count_prompt.remote(prompt))
                return size
            except _WorkerLost:
                continue

    async def score(self, text: str) -> TokenScores:
        size = await self.count_prompt(text)

        async def call(member: _Member, booked: Reservation) -> TokenScores:
            found: TokenScores = await self._ask(member, member.actor.score.remote(text))
            booked.settle(Usage(len(found.tokens), 0))
            return found

        return await self._booked("score", size, 0, 1, None, call)

    async def _booked(
        self, purpose: str, prompt_tokens: int, new_tokens: int, n: int, also: Ledger | None,
        call: Callable[[_Member, Reservation], Awaitable[T]],
    ) -> T:  # fmt: skip
        """Make a call under the ledgers' caps, on another worker if one is lost."""
        while True:
            member = self._least_loaded()
            member.n_choices += n
            try:
                with self._ledger.call(
                    member.name, purpose, self._price,
                    prompt_tokens=prompt_tokens, new_tokens=new_tokens, also=also,
                ) as booked:  # fmt: skip
                    try:
                        return await call(member, booked)
                    except ConfigError:
                        booked.refuse()
                        raise
            except _WorkerLost:
                continue
            finally:
                member.n_choices -= n

    def _least_loaded(self) -> _Member:
        alive = [m for m in self._members if m.is_alive]
        if not alive:
            raise EndpointError(
                f"none of the pool's {len(self._members)} workers is left: all ended or were killed"
            )
        return min(alive, key=lambda m: m.n_choices)

    async def _ask(self, member: _Member, reference: Any) -> Any:
        """Await what an actor was asked; raises what its endpoint raised, or _WorkerLost."""
        try:
            found = await reference
        except asyncio.CancelledError:
            self._ray.cancel(reference)
            raise
        except self._ray.exceptions.RayActorError as e:
            member.is_alive = False
            raise _WorkerLost(member.name) from e
        except self._ray.exceptions.RayError as e:
            raise EndpointError(f"worker {member.name} failed: {str(e).splitlines()[-1]}") from e
        if isinstance(found, _Refusal):
            raise found.error()
        return found

    async def aclose(self) -> None:
        """End the workers, and the cluster if it was started here."""
        if self._ray is None:
            return
        for member in self._members:
            self._ray.kill(member.actor)
        self._members = []
        if self._is_ours:
            await asyncio.to_thread(self._ray.shutdown)
        self._ray = None

    async def __aenter__(self) -> Self:
        started = await asyncio.to_thread(_started, self._address, len(self._workers))
        self._ray, self._is_ours = started
        try:
            actor = self._ray.remote(_Actor).options(
                num_cpus=0 if self._address is None else 1, max_concurrency=MAX_CALLS
            )
            self._members = [_Member(actor.remote(w), "worker", 1, 0) for w in self._workers]
            for number, member in enumerate(self._members):
                try:
                    name, most, pid = await self._ask(member, member.actor.open.remote())
                except _WorkerLost:
                    raise EndpointError(f"worker {number} ended while it was starting") from None
                member.name, member.max_choices, member.pid = name, most, pid
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.aclose()


class _WorkerLost(Exception):
    """A worker's process is gone."""


class _Started(NamedTuple):
    module: Any
    is_ours: bool


def _started(address: str | None, n_workers: int) -> _Started:
    """Return Ray, connected to the cluster at `address`, to what is there, or to our own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of tomorrow
    try:
        import ray
    except ImportError:
        raise ConfigError("a pool of workers needs Ray: pip install 'capax[ray]'") from None
    if ray.is_initialized():
        return _Started(ray, False)
    choices: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        choices |= {
            "num_cpus": n_workers,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_NBYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        choices["address"] = address
    try:
        ray.init(**choices)
    except (ConnectionError, RuntimeError, OSError, ValueError) as e:
        raise EndpointError(f"no Ray cluster at {address or 'this machine'}: {e}") from None
    return _Started(ray, True)


__all__ = ["EngineWorker", "RayPool", "ServerWorker", "Worker"]
