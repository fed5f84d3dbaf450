"""Draw a comparison of KV methods: what bytes buy, and what depth costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capax.errors import ConfigError
from capax.measuring.kv_report import MethodReport

LEAST_KL = 1e-6  # where methods without a difference are drawn
_MARKERS = "osD^vP*X<>ph"


def draw(reports: Sequence[MethodReport], path: Path, title: str) -> None:
    """Write the picture; controls are hollow. Raises ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs: pip install 'capax[plots]'") from None
    has_speeds = any(r.speeds for r in reports)
    figure = Figure(figsize=(11 if has_speeds else 6.5, 5.4), layout="constrained")
    panels = figure.subplots(1, 2 if has_speeds else 1, squeeze=False)[0]
    figure.suptitle(title, fontsize=10)
    quality = panels[0]
    for i, report in enumerate(reports):
        row, color, marker = report.quality, f"C{i % 10}", _MARKERS[i % len(_MARKERS)]
        kl = max(row.kl, LEAST_KL)
        spread = [[kl - max(row.kl_interval.low, LEAST_KL)], [row.kl_interval.high - kl]]
        style = {"markerfacecolor": "none"} if report.control_of else {}
        quality.errorbar(
            [row.total_bytes_per_token], [kl], [[max(x[0], 0)] for x in spread],
            fmt=marker, color=color, capsize=2, label=report.name, **style,
        )  # fmt: skip
        if has_speeds and report.speeds:
            depths = sorted(report.speeds)
            panels[1].plot(
                depths, [report.speeds[d].median for d in depths],
                marker=marker, color=color, linestyle="--" if report.control_of else "-", **style,
            )  # fmt: skip
    quality.set(
        xscale="log", yscale="log", xlabel="bytes per token, all parts",
        ylabel="KL to the float32 cache, nats per token",
        title="quality against bytes (hollow: controls)",
    )  # fmt: skip
    if has_speeds:
        panels[1].set(
            xscale="log", yscale="log", xlabel="tokens in the cache",
            ylabel="decoded tokens per second", title="speed against depth",
        )  # fmt: skip
    for axes in panels:
        axes.title.set_fontsize(10)
        axes.grid(visible=True, alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be written as a picture: {e}") from None
