"""Draw a comparison of KV methods: what bytes buy, and what depth costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capax.files.picture import require_matplotlib, save_picture
from capax.measuring.kv_report import MethodReport

LEAST_KL = 1e-6  # where methods without a difference are drawn
_MARKERS = "osD^vP*X<>ph"


def draw(reports: Sequence[MethodReport], path: Path, title: str) -> None:
    """Write the picture; controls are hollow. Raises ConfigError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    has_speeds = any(r.speeds for r in reports)
    figure = Figure(figsize=(11 if has_speeds else 6.5, 5.4), layout="constrained")
    panels = figure.subplots(1, 2 if has_speeds else 1, squeeze=False)[0]
    figure.suptitle(title, fontsize=10)
    _draw_quality(panels[0], reports)
    if has_speeds:
        _draw_speed(panels[1], reports)
    for axes in panels:
        axes.title.set_fontsize(10)
        axes.grid(visible=True, alpha=0.25)
    handles, names = panels[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    save_picture(path, figure)


def _style(number: int, report: MethodReport) -> dict[str, Any]:
    return {
        "marker": _MARKERS[number % len(_MARKERS)],
        "color": f"C{number % 10}",
        "markerfacecolor": "none" if report.control_of else f"C{number % 10}",
        "linestyle": "--" if report.control_of else "-",
        "label": report.name,
    }


def _draw_quality(axes: Any, reports: Sequence[MethodReport]) -> None:
    """Draw every method but the reference, whose divergence from itself is nothing."""
    for i, report in enumerate(reports[1:], 1):
        row = report.quality
        kl = max(row.kl, LEAST_KL)
        below, above = kl - row.kl_interval.low, row.kl_interval.high - kl
        axes.errorbar(
            [row.total_bytes_per_token], [kl], [[max(below, 0.0)], [max(above, 0.0)]],
            capsize=2, **_style(i, report),
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="KiB per token, all parts",
        ylabel="KL to the float32 cache, nats per token",
        title="quality against bytes (hollow: controls)",
    )  # fmt: skip
    totals = [report.quality.total_bytes_per_token for report in reports[1:] or reports]
    ticks = [2.0**k for k in range(24) if min(totals) / 2 <= 2**k <= max(totals) * 2]
    axes.set_xticks(ticks, [f"{tick / 1024:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)


def _draw_speed(axes: Any, reports: Sequence[MethodReport]) -> None:
    for i, report in enumerate(reports):
        depths = sorted(report.speeds)
        if depths:
            axes.plot(depths, [report.speeds[d].median for d in depths], **_style(i, report))
    axes.set(
        xscale="log", xlabel="tokens in the cache", ylabel="decoded tokens per second",
        title="speed against depth",
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    ticks = sorted({depth for report in reports for depth in report.speeds})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
