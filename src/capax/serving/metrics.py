"""What /metrics shows: the engine's own totals, and what was seen of each request.

Names carry base units and end in `_total` where they only grow; with `--metrics-compat vllm`
those that vLLM has are repeated under its names. The label values are a fixed set: the one
model's name, and words of ours.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Self, get_args

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import capax
from capax.engine.outputs import FinishReason
from capax.serving.histogram import BETWEEN_TOKENS_S, FIRST_TOKEN_S, REQUEST_S, Histogram

if TYPE_CHECKING:
    from capax import StreamPiece
    from capax.engine.outputs import RequestOutput
    from capax.engine.runner import PromptProgress
    from capax.serving.request_log import Call
    from capax.serving.state import Server

FINISH_REASONS: tuple[str, ...] = get_args(FinishReason)

# capax's histogram -> (its text, vLLM's name)
_HISTOGRAMS = {
    "capax_time_to_first_token_seconds": (
        "From the request's submission to its first token.",
        "vllm:time_to_first_token_seconds",
        FIRST_TOKEN_S,
    ),
    "capax_inter_token_latency_seconds": (
        "From one token of a choice to its next.",
        "vllm:inter_token_latency_seconds",
        BETWEEN_TOKENS_S,
    ),
    "capax_request_duration_seconds": (
        "From the request's submission to its last token.",
        "vllm:e2e_request_latency_seconds",
        REQUEST_S,
    ),
    "capax_request_queue_seconds": (
        "What a request waited before the engine took it up.",
        "vllm:request_queue_time_seconds",
        REQUEST_S,
    ),
    "capax_request_prefill_seconds": (
        "What a request's prompt took.",
        "vllm:request_prefill_time_seconds",
        REQUEST_S,
    ),
    "capax_request_decode_seconds": (
        "What a request's tokens took after the first.",
        "vllm:request_decode_time_seconds",
        REQUEST_S,
    ),
}


class Metrics:
    """Observes requests. Used on the event loop only."""

    def __init__(self) -> None:
        self.histograms = {name: Histogram(edges) for name, (_, _, edges) in _HISTOGRAMS.items()}
        self.strategy_answers = 0
        self.embedding_texts = 0
        self.embedding_tokens = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.first_token = self.histograms["capax_time_to_first_token_seconds"]
        self.between_tokens = self.histograms["capax_inter_token_latency_seconds"]

    def observe(
        self, pieces: AsyncIterator[list[StreamPiece]], n: int, call: Call | None = None
    ) -> ObservedStream:
        """Return the stream of a request with `n` choices, counted as it is read.

        `call`: its entry in the request log, filled as well.
        """
        return ObservedStream(self, pieces, n, call)

    def finish(self, duration_s: float, queue_s: float, output: RequestOutput) -> None:
        """Count a request that ended by itself."""
        for choice in output.outputs:
            self.finished[choice.finish_reason] += 1
        for name, seconds in (
            ("capax_request_duration_seconds", duration_s),
            ("capax_request_queue_seconds", queue_s),
            ("capax_request_prefill_seconds", output.timings.prompt_ms / 1e3),
            ("capax_request_decode_seconds", output.timings.predicted_ms / 1e3),
        ):
            self.histograms[name].observe(seconds)


class ObservedStream:
    """Passes on the news of one request and takes its times."""

    def __init__(
        self,
        metrics: Metrics,
        pieces: AsyncIterator[list[StreamPiece]],
        n: int,
        call: Call | None,
    ) -> None:
        self._metrics = metrics
        self._call = call
        self._pieces = pieces
        self._n = n
        self._began_s = self._last_s = time.perf_counter()
        self._first_token_s: float | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[StreamPiece]:
        pieces = await self._pieces.__anext__()
        now = time.perf_counter()
        n_tokens = sum(len(piece.token_ids) for piece in pieces)
        if n_tokens and self._first_token_s is None:
            self._first_token_s = now - self._began_s
            self._metrics.first_token.observe(self._first_token_s)
        elif n_tokens:
            each = max(1.0, n_tokens / self._n)  # of one choice since the last news
            self._metrics.between_tokens.observe((now - self._last_s) / each, n_tokens)
        self._last_s = now
        if self._call is not None:
            self._call.n_new += n_tokens
        output = pieces[-1].output if pieces else None
        if output is not None:
            self._is_over = True
            duration_s = now - self._began_s
            waited_s = (self._first_token_s or duration_s) - output.timings.prompt_ms / 1e3
            queue_s = max(0.0, waited_s)
            self._metrics.finish(duration_s, queue_s, output)
            if self._call is not None:
                self._call.finish(output, queue_s)
        return pieces

    @property
    def prompt_progress(self) -> PromptProgress | None:
        """How far the prompt is; None where the stream does not know."""
        return getattr(self._pieces, "prompt_progress", None)

    async def aclose(self) -> None:
        """Cancel the request unless it has ended."""
        if not self._is_over:
            self._is_over = True
            self._metrics.finished["cancelled"] += self._n
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()


def exposition(server: Server) -> bytes:
    """Return everything in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(server))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)


class _EngineCollector(Collector):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._labels = {"model_name": server.model_name}

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        isa = self._server.primary.isa if self._server.has_model else ""
        build = {"version": capax.__version__, "isa": isa}
        yield self._gauge("capax_build_info", "The version that runs.", 1, **build)
        if not self._server.has_model:
            return
        if self._server.has_llm:
            for family, vllm_name in (*self._engine(), *self._requests()):
                yield family
                if vllm_name and self._server.config.metrics_compat == "vllm":
                    yield _renamed(family, vllm_name)
        yield self._counter(
            "capax_strategy_answers",
            "Chats answered by a strategy; each of its calls is a request too.",
            self._server.metrics.strategy_answers,
        )
        log = self._server.request_log
        if log is not None:
            yield self._counter(
                "capax_request_log_lost", "Requests the request log has no line of.", log.n_lost
            )
        yield from self._embeddings()
        yield from self._memory()

    def _engine(self) -> Iterator[tuple[Metric, str | None]]:
        stats = self._server.runner.stats()
        counter, gauge = self._counter, self._gauge
        yield counter("capax_prompt_tokens", "Prompt tokens.", stats.prompt_tokens), \
            "vllm:prompt_tokens"  # fmt: skip
        yield counter("capax_generation_tokens", "Generated tokens.", stats.generation_tokens), \
            "vllm:generation_tokens"  # fmt: skip
        yield gauge("capax_requests_running", "Requests in the batch.", stats.n_running), \
            "vllm:num_requests_running"  # fmt: skip
        yield gauge("capax_requests_waiting", "Requests in the queue.", stats.n_waiting), \
            "vllm:num_requests_waiting"  # fmt: skip
        ratio = stats.kv_pages_used / max(1, stats.kv_pages_total)
        yield gauge("capax_kv_cache_usage_ratio", "KV pages in use, 0 to 1.", ratio), \
            "vllm:kv_cache_usage_perc"  # fmt: skip
        yield counter("capax_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.",
                      stats.prefix_query_tokens), "vllm:prefix_cache_queries"  # fmt: skip
        yield counter("capax_prefix_cache_hits", "Prompt tokens found in the prefix cache.",
                      stats.prefix_hit_tokens), "vllm:prefix_cache_hits"  # fmt: skip
        yield counter("capax_prompt_tokens_cached", "Prompt tokens not computed again.",
                      stats.prefix_hit_tokens, source="prefix_cache"), \
            "vllm:prompt_tokens_cached"  # fmt: skip
        yield counter("capax_preemptions", "Requests that gave their pages back and ran again.",
                      stats.n_preemptions), "vllm:num_preemptions"  # fmt: skip
        yield counter("capax_engine_steps", "Forward passes.", stats.n_steps), None
        for tier, nbytes in self._server.weight_nbytes.items():
            yield counter("capax_weight_read_bytes", "Weights read, once per step: an estimate.",
                          stats.n_steps * nbytes, tier=tier), None  # fmt: skip
        n_computed = stats.prompt_tokens - stats.prefix_hit_tokens + stats.generation_tokens
        yield counter("capax_flops", "Operations of the linear maps: an estimate.",
                      self._server.flops_per_token * n_computed), None  # fmt: skip

    def _requests(self) -> Iterator[tuple[Metric, str | None]]:
        metrics = self._server.metrics
        finished = CounterMetricFamily(
            "capax_requests",
            "Choices that ended, by why.",
            labels=("model_name", "finished_reason"),
        )
        for reason, n in metrics.finished.items():
            finished.add_metric((self._server.model_name, reason), n)
        yield finished, "vllm:request_success"
        for name, (text, vllm_name, _) in _HISTOGRAMS.items():
            yield metrics.histograms[name].family(name, text, self._labels), vllm_name

    def _embeddings(self) -> Iterator[Metric]:
        metrics = self._server.metrics
        yield self._counter("capax_embedding_texts", "Texts embedded.", metrics.embedding_texts)
        yield self._counter(
            "capax_embedding_tokens", "Tokens of texts embedded.", metrics.embedding_tokens
        )

    def _memory(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily(
            "capax_memory_bytes", "Bytes held, by what holds them.", labels=("model_name", "kind")
        )
        for kind, nbytes in self._server.memory().items():
            memory.add_metric((self._server.model_name, kind), nbytes)
        yield memory
        limit = self._server.limit_nbytes
        yield self._gauge("capax_memory_limit_bytes", "The limit on all of them together.", limit)

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        labels = self._labels | labels
        family = GaugeMetricFamily(name, text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float, **labels: str) -> Metric:
        labels = self._labels | labels
        family = CounterMetricFamily(name, text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)
        return family


def _renamed(family: Metric, name: str) -> Metric:
    twin = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        suffix = sample.name.removeprefix(family.name)
        twin.add_sample(name + suffix, sample.labels, sample.value)
    return twin
