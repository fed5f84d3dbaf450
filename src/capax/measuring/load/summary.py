"""A load in numbers: vLLM's summary block and the keys of its result file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from capax.measuring.load.request import Outcome
from capax.measuring.load.run import Load

Percentiles = Sequence[float]


class Metric(NamedTuple):
    """A time per request or per token: vLLM's short name, label and headline."""

    name: str
    label: str
    headline: str


METRICS = (
    Metric("ttft", "TTFT", "Time to First Token"),
    Metric("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    Metric("itl", "ITL", "Inter-token Latency"),
    Metric("e2el", "E2EL", "End-to-end Latency"),
)


METRIC_NAMES = tuple(metric.name for metric in METRICS)


def values_of(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Return the milliseconds of every metric over successful requests."""
    good = [outcome for outcome in outcomes if outcome.is_ok]
    seconds: dict[str, list[float]] = {
        "ttft": [o.ttft_s for o in good],
        "tpot": [o.tpot_s for o in good if o.tpot_s is not None],
        "itl": [gap for o in good for gap in o.gaps_s],
        "e2el": [o.latency_s for o in good],
    }
    return {name: [1e3 * value for value in found] for name, found in seconds.items()}


def meets(outcome: Outcome, goals_ms: Mapping[str, float]) -> bool:
    """Whether a request succeeded within all goals (of ttft, tpot and e2el)."""
    took = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s or 0.0, "e2el": outcome.latency_s}
    return outcome.is_ok and all(1e3 * took[name] <= goal for name, goal in goals_ms.items())


def result_of(
    load: Load,
    *,
    metrics: Sequence[str] = METRIC_NAMES,
    percentiles: Percentiles = (99.0,),
    goals_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the numbers of a load under the names that vLLM's result files use.

    `goals_ms`: a request counts for goodput if it stays within all of them.
    """
    good = [outcome for outcome in load.outcomes if outcome.is_ok]
    n_prompt, n_output = sum(o.n_prompt for o in good), sum(o.n_tokens for o in good)
    duration_s = max(load.duration_s, 1e-9)
    n_within = sum(meets(o, goals_ms) for o in good) if goals_ms else None
    peak_tokens, peak_requests = _peaks(good)
    result: dict[str, Any] = {
        "duration": load.duration_s,
        "completed": len(good),
        "failed": len(load.outcomes) - len(good),
        "total_input_tokens": n_prompt,
        "total_output_tokens": n_output,
        "request_throughput": len(good) / duration_s,
        "request_goodput": None if n_within is None else n_within / duration_s,
        "output_throughput": n_output / duration_s,
        "total_token_throughput": (n_prompt + n_output) / duration_s,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
        "generator_cpu_share": load.cpu_share,
    }
    found = values_of(load.outcomes)
    for metric in METRICS:
        if metric.name not in metrics:
            continue
        values = found[metric.name]
        result[f"mean_{metric.name}_ms"] = float(np.mean(values)) if values else 0.0
        result[f"median_{metric.name}_ms"] = float(np.median(values)) if values else 0.0
        result[f"std_{metric.name}_ms"] = float(np.std(values)) if values else 0.0
        for p in percentiles:
            key = f"p{_percentile_word(p)}_{metric.name}_ms"
            result[key] = float(np.percentile(values, p)) if values else 0.0
    return result


def details_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return each request's own numbers, in seconds, as vLLM's `--save-detailed` does."""
    return {
        "input_lens": [o.n_prompt for o in outcomes],
        "output_lens": [o.n_tokens for o in outcomes],
        "ttfts": [o.ttft_s for o in outcomes],
        "itls": [o.gaps_s for o in outcomes],
        "start_times": [o.start_s for o in outcomes],
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error for o in outcomes],
    }


def summary_lines(
    result: Mapping[str, Any],
    *,
    request_rate: float = math.inf,
    max_concurrency: int | None = None,
) -> list[str]:
    """Return vLLM's block for a result, line by line."""

    def count(label: str, value: float) -> str:
        return f"{label:<40} {value:<10}"

    def rate(label: str, value: float) -> str:
        return f"{label:<40} {value:<10.2f}"

    lines = [
        f"{' Serving Benchmark Result ':=^50}",
        count("Successful requests:", result["completed"]),
        count("Failed requests:", result["failed"]),
    ]
    if max_concurrency is not None:
        lines.append(count("Maximum request concurrency:", max_concurrency))
    if not math.isinf(request_rate):
        lines.append(rate("Request rate configured (RPS):", request_rate))
    lines += [
        rate("Benchmark duration (s):", result["duration"]),
        count("Total input tokens:", result["total_input_tokens"]),
        count("Total generated tokens:", result["total_output_tokens"]),
        rate("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result["request_goodput"] is not None:
        lines.append(rate("Request goodput (req/s):", result["request_goodput"]))
    lines += [
        rate("Output token throughput (tok/s):", result["output_throughput"]),
        rate("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        rate("Peak concurrent requests:", result["max_concurrent_requests"]),
        rate("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    for metric in METRICS:
        if f"mean_{metric.name}_ms" not in result:
            continue
        lines.append(f"{metric.headline:-^50}")
        lines.append(rate(f"Mean {metric.label} (ms):", result[f"mean_{metric.name}_ms"]))
        lines.append(rate(f"Median {metric.label} (ms):", result[f"median_{metric.name}_ms"]))
        suffix = f"_{metric.name}_ms"
        for key, value in result.items():
            if key.startswith("p") and key.endswith(suffix):
                word = key.removesuffix(suffix)[1:]
                lines.append(rate(f"P{word} {metric.label} (ms):", value))
    lines.append("=" * 50)
    return lines


def _peaks(good: Sequence[Outcome]) -> tuple[float, int]:
    """Return the most tokens within a second of the load, and the most requests at a time."""
    if not good:
        return 0.0, 0
    moments: list[float] = []
    changes: list[tuple[float, int]] = []
    for o in good:
        first = o.start_s + o.ttft_s
        moments += np.concatenate([[first], first + np.cumsum(o.gaps_s)]).tolist()
        changes += [(o.start_s, 1), (o.start_s + o.latency_s, -1)]
    per_second = np.bincount(np.floor(moments).astype(np.int64))
    running = np.cumsum([change for _, change in sorted(changes)])
    return float(per_second.max()), int(running.max())


def _percentile_word(p: float) -> str:
    return str(int(p)) if int(p) == p else str(p)
