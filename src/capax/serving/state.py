"""What the routes share: the model, its runner, the configuration, and what is being worked on."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from starlette.requests import Request

from capax.decoding.params import LIMITS, check_number
from capax.files.recommended import recommended_sampling
from capax.serving.auth import Keys, tenant_of
from capax.serving.config import ServerConfig
from capax.serving.errors import ApiError, not_ready
from capax.serving.logs import log_prompt
from capax.serving.metrics import Metrics
from capax.serving.request_log import RequestLog, begin_call

if TYPE_CHECKING:
    from capax import LLM, Embedder, SamplingParams, StreamPiece
    from capax.engine.runner import Runner
    from capax.serving.exchange import Exchange
    from capax.serving.nodes import LoadedNodes, Nodes


@dataclass(slots=True)
class Progress:
    """How far loading is; written by the loading thread, read by /ready."""

    phase: str = "starting"
    fraction: float = 0.0

    def enter(self, phase: str, fraction: float) -> None:
        """Say what begins now and how much of the whole, 0 to 1, is behind it."""
        self.phase, self.fraction = phase, fraction


class Models(NamedTuple):
    """What is served: a model that writes, one that embeds, or both; and nodes of a swarm."""

    llm: LLM | None
    embedder: Embedder | None = None
    nodes: LoadedNodes | None = None


Load: TypeAlias = "Callable[[Progress], LLM | Models]"


class Server:
    """One server: made before the model is loaded, and the same until the process ends."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.keys = Keys(config.api_keys)
        self.created = int(time.time())
        self.progress = Progress()
        self.exchanges: set[Exchange] = set()
        self.buffered_nbytes = 0  # of bodies being received
        self.is_draining = False
        self.failure: BaseException | None = None  # loading failed, or the engine's thread died
        self.failed = asyncio.Event()
        self.loaded = asyncio.Event()
        self.metrics = Metrics()
        self.request_log = None if config.request_log is None else RequestLog(config.request_log)
        # One thread: however many slow grammars wait, other work finds the shared threads free.
        self.form_compiler = ThreadPoolExecutor(1, "capax-forms")
        self.weight_nbytes: dict[str, int] = {}  # read in each step, by where they lie
        self.flops_per_token = 0
        self.sampling_defaults: dict[str, float] = {}  # what the model's authors recommend
        self.embedding_turn = asyncio.Lock()  # texts are embedded for one request at a time
        self.nodes: Nodes | None = None  # of a swarm that strategies may name
        self._llm: LLM | None = None
        self._embedder: Embedder | None = None
        self._runner: Runner | None = None

    @property
    def model_name(self) -> str:
        """The name clients use for the model."""
        return self.config.model_name

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name a request may use."""
        return (self.config.model_name,)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.has_model and self.failure is None and not self.is_draining

    @property
    def has_model(self) -> bool:
        return self._llm is not None or self._embedder is not None

    @property
    def has_llm(self) -> bool:
        """Whether the model that is served writes text."""
        return self._llm is not None

    @property
    def llm(self) -> LLM:
        """The model that writes. Raises ApiError 503 while it is loading, 501 if there is none."""
        if self._llm is None:
            self.check_loaded()
            raise ApiError(
                501,
                f"{self.model_name} embeds texts and writes none; use /v1/embeddings, or serve a "
                "model that writes",
            )
        return self._llm

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model beside the model that writes, or instead of it."""
        return self._embedder

    @property
    def primary(self) -> LLM | Embedder:
        """The model the server was started with. Raises ApiError 503 while it is loading."""
        if self._llm is None and self._embedder is not None:
            return self._embedder
        return self.llm

    def check_loaded(self) -> None:
        """Raise ApiError 503 model_loading while there is no model."""
        if not self.has_model:
            raise not_ready(
                f"the model is loading ({self.progress.phase}, {self.progress.fraction:.0%}); "
                "ask again soon"
            )

    @property
    def runner(self) -> Runner:
        """The engine's thread. Raises ApiError 503 while the model is loading, or 500 after."""
        self.check_alive()
        if self._runner is None:
            _ = self.llm  # raises
            raise not_ready("the model is loading; ask again soon")
        return self._runner

    def adopt(self, models: Models, runner: Runner | None, nodes: Nodes | None = None) -> None:
        """Take the loaded models into service; `runner` is that of the one that writes.

        Raises ConfigError if the model recommends what cannot be.
        """
        if models.llm is not None:
            self.sampling_defaults = checked_defaults(recommended_sampling(models.llm.file))
            self._estimate_work(models.llm)
        self._llm, self._embedder, self._runner = models.llm, models.embedder, runner
        self.nodes = nodes
        self.progress.enter("ready", 1.0)
        self.loaded.set()

    def _estimate_work(self, llm: LLM) -> None:
        """Note what a step reads and a token computes, for the metrics."""
        streamed = sum(llm.file.tensors[name].nbytes for name in llm.plan.streamed)
        self.weight_nbytes = {"memory": llm.plan.footprint.weights}
        if streamed:
            self.weight_nbytes["file"] = streamed
        self.flops_per_token = 2 * sum(
            math.prod(tensor.shape)
            for tensor in llm.file.tensors.values()
            if len(tensor.shape) == 2
        )

    def fail(self, error: BaseException) -> None:
        """Remember what ended the server; the process leaves with it."""
        self.failure = error
        self.failed.set()

    def check_alive(self) -> None:
        """Raise ApiError 500 if loading failed or the engine's thread died."""
        if self.failure is not None:
            raise ApiError(
                500, f"the engine has stopped ({type(self.failure).__name__}); restart the server"
            )

    def stream(
        self,
        request: Request,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        constraint: Callable[[], Any] | None = None,
    ) -> AsyncIterator[list[StreamPiece]]:
        """Submit a prompt for `request` and return its news, as `Runner.stream` does.

        Routes use this rather than the runner: it knows the tenant and feeds the metrics.
        """
        pieces = self.runner.stream(
            prompt,
            params,
            tenant=tenant_of(request, cache_salt),
            priority=priority,
            constraint=constraint,
        )
        if self.config.log_prompts:
            log_prompt(request.scope["capax.request_id"], self.llm.tokenizer.decode(list(prompt)))
        call = begin_call(request.scope, len(prompt), params.n)
        return self.metrics.observe(pieces, params.n, call)

    @property
    def limit_nbytes(self) -> int:
        """The limit on what the process holds."""
        if self.config.memory is not None:
            return self.config.memory
        if self._llm is None or self._embedder is None:
            return self.primary.plan.limit.nbytes
        return self._llm.plan.limit.nbytes + own_nbytes(self._embedder)

    def memory(self) -> dict[str, int]:
        """Return the bytes held now, by what holds them; together, what the process has resident.

        `kv`: pages of running requests; `cache`: pages kept for reuse.
        """
        held = {"weights": 0, "kv": 0, "scratch": 0, "cache": 0}
        if self._llm is not None:
            held |= self._llm.measured_memory()
            stats = self.runner.stats()
            n_pages = max(1, stats.kv_pages_used + stats.kv_pages_cached)
            held["cache"] = held["kv"] * stats.kv_pages_cached // n_pages
            held["kv"] -= held["cache"]
        if self._embedder is not None:
            for kind, nbytes in self._embedder.measured_memory().items():
                held[kind] += nbytes
        return {**held, "other": max(0, resident_nbytes() - sum(held.values()))}


def own_nbytes(embedder: Embedder) -> int:
    """Return what an embedding model adds to a process that holds another model."""
    footprint = embedder.plan.footprint
    return footprint.total - footprint.base


def checked_defaults(values: dict[str, float]) -> dict[str, float]:
    """Return a model's recommendations. Raises ConfigError for one that is out of range."""
    for name, value in values.items():
        check_number(f"the model's recommended {name}", value, LIMITS[name])
    return values


def server_of(request: Request) -> Server:
    """Return the server, once it is ready. Raises ApiError 503 model_loading before."""
    server = raw_server_of(request)
    server.check_alive()
    server.check_loaded()
    return server


def raw_server_of(request: Request) -> Server:
    """Return the server in whatever state it is."""
    server: Server = request.app.state.server
    return server


def resident_nbytes() -> int:
    """Return what this process has resident."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
