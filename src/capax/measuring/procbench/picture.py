"""The curve of a run: how much of a procedure is right, by its number of steps."""

from __future__ import annotations

from pathlib import Path

from capax.files.picture import save_picture
from capax.measuring.procbench.report import Report


def draw(report: Report, path: Path) -> None:
    """Write PA, SM and FM over steps, with the 95 % intervals of PA and SM.

    Raises ConfigError if `path` cannot be written as a picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = report.by_steps
    steps = [int(row.name) for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    curves = (
        ("SM: all states right", "#2f6f8f", "o-", [r.sm for r in rows]),
        ("PA: leading share", "#c2703d", "s--", [r.pa for r in rows]),
        ("FM: final state right", "#7a7f86", "^:", [r.fm for r in rows]),
    )
    for name, color, style, values in curves:
        axes.plot(steps, values, style, color=color, label=name, markersize=4)
    for color, bounds in (
        ("#2f6f8f", [r.sm_interval for r in rows]),
        ("#c2703d", [r.pa_interval for r in rows]),
    ):
        low, high = zip(*bounds, strict=True)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="steps", ylabel="share of problems", ylim=(-0.02, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    save_picture(path, figure)
