"""The rows and the picture of `serving.json`: several sequences at once, and `capax serve`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Makers, Row, speed_row

MARKERS = ("<!-- serving:begin -->", "<!-- serving:end -->")


def batch_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Decode of several sequences in one step."""
    n = experiment["n_sequences"]
    yield speed_row(f"decode, {n} sequences together", experiment, "llama_cpp_q4_1", 3.0)
    if n != 16:
        return
    together = experiment["engines"]["capax"]["tokens_per_second"]["median"]
    alone = experiment["engines"]["capax_alone"]["tokens_per_second"]["median"]
    yield Row(
        f"decode, {n} sequences together",
        f"{together:,.0f} tok/s",
        f"capax, one sequence: {alone:,.0f} tok/s",
        f"{together / alone:.2f} ×",
        "≥ 5.0 ×",
        together >= 5 * alone,
    )


def shared_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Many choices of one prompt."""
    shared = statistics.median(experiment["shared_seconds"])
    separate = statistics.median(experiment["separate_seconds"])
    yield Row(
        f"n = {experiment['n_choices']} answers to {experiment['prompt_tokens']} prompt tokens",
        f"{shared:,.1f} s",
        f"as many requests without sharing: {separate:,.1f} s",
        f"{shared / separate:.2f} × its time",
        "≤ 0.35 ×",
        shared <= 0.35 * separate,
    )


def http_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """What HTTP costs."""
    medians = {k: statistics.median(v) for k, v in experiment["tokens_per_second"].items()}
    yield Row(
        f"streaming over HTTP, {experiment['clients']} clients",
        f"{medians['http']:,.0f} tok/s",
        f"the same clients inside the process: {medians['in_process']:,.0f} tok/s",
        f"{experiment['ratio']:.2f} ×",
        "≥ 0.90 ×",
        experiment["ratio"] >= 0.90,
    )


def prefix_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Reuse of a prefix."""
    first = statistics.median(experiment["first_s"])
    second = statistics.median(experiment["second_s"])
    yield Row(
        f"time to first token of {experiment['prompt_tokens']:,} tokens, all but the end known",
        f"{1e3 * second:,.0f} ms",
        f"the first request: {1e3 * first:,.0f} ms",
        f"{experiment['ratio']:.3f} × its time",
        "≤ 0.1 ×",
        experiment["ratio"] <= 0.1,
    )


def interference_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Running streams while a long prompt arrives."""
    during, quiet = experiment["during_ms"], experiment["quiet_ms"]
    yield Row(
        f"p99 between tokens of {experiment['streams']} streams while a prompt of "
        f"{experiment['prompt_tokens']:,} tokens arrives",
        f"{during['p99']:,.1f} ms",
        f"its median: {during['median']:,.1f} ms (before: {quiet['median']:,.1f} ms)",
        f"{experiment['ratio']:.2f} ×",
        "≤ 3 ×",
        experiment["ratio"] <= 3,
    )


def client_rows(experiment: dict[str, Any]) -> Iterator[Row]:
    """Closed-loop clients with the lengths of conversations."""
    for n, found in experiment["clients"].items():
        share = found["request_goodput"] / found["request_throughput"]
        yield Row(
            f"{n} client{'' if n == '1' else 's'} over HTTP, lengths of conversations",
            f"{found['output_throughput']:,.0f} tok/s",
            f"first token {found['median_ttft_ms']:,.0f} ms, p99 {found['p99_ttft_ms']:,.0f}; "
            f"between tokens {found['median_itl_ms']:,.1f} ms, p99 {found['p99_itl_ms']:,.1f}",
            f"{share:.0%} within {_goals(experiment['goals_ms'])}",
            "",
            True,
        )


def _goals(goals_ms: dict[str, float]) -> str:
    return " and ".join(f"{name.upper()} {goal:,.0f} ms" for name, goal in goals_ms.items())


ROWS: Makers = {
    "batch_16": batch_rows,
    "batch_64": batch_rows,
    "shared_prompt": shared_rows,
    "http": http_rows,
    "prefix": prefix_rows,
    "interference": interference_rows,
    "clients": client_rows,
}


def draw(experiments: dict[str, Any], path: Path) -> None:
    """Draw what the clients see by their number: tokens per second, and times with their p99."""
    if "clients" not in experiments:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    measured = experiments["clients"]
    counts = list(measured["clients"])
    found = [measured["clients"][n] for n in counts]
    panels = (
        ("all tokens", "tokens per second", [("output_throughput", "#2f6f8f", "")]),
        (
            "to the first token",
            "ms",
            [("median_ttft_ms", "#2f6f8f", "median"), ("p99_ttft_ms", "#b9bec4", "p99")],
        ),
        (
            "between tokens",
            "ms",
            [("median_itl_ms", "#2f6f8f", "median"), ("p99_itl_ms", "#b9bec4", "p99")],
        ),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(4.0 * len(panels), 2.6))
    for axis, (title, unit, series) in zip(axes, panels, strict=True):
        width = 0.8 / len(series)
        for i, (key, color, label) in enumerate(series):
            at = [x + (i - (len(series) - 1) / 2) * width for x in range(len(counts))]
            bars = axis.bar(at, [f[key] for f in found], width, color=color, label=label)
            axis.bar_label(bars, fmt="{:,.0f}", fontsize=7)
        axis.set_xticks(range(len(counts)), counts)
        axis.set_xlabel("clients at a time")
        axis.set_ylabel(unit)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        if len(series) > 1:
            axis.legend(fontsize=7, frameon=False)
    title = f"capax serve, {measured['model']['name']}, {measured['threads']} threads"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
