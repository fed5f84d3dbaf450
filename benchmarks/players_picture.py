"""Draw what trained players do: difficulty, more samples, and rounds with a critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"direct": "#c2703d", "search": "#2f6f9f"}
NAMES = {"tsp": ("tours", "cities"), "3sat": ("formulas", "variables")}


def picture(found: dict[str, Any], path: Path) -> None:
    """Write three panels for each family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    grid = figure.subplots(2, 3)
    for row, (family, result) in zip(grid, found["families"].items(), strict=True):
        _difficulty(row[0], family, result)
        _more_samples(row[1], family, result)
        _rounds(row[2], family, result)
        for axes in row:
            axes.set_ylim(-0.03, 1.03)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _difficulty(axes: Any, family: str, result: dict[str, Any]) -> None:
    things, unit = NAMES[family]
    for kind, player in result["players"].items():
        rows = player["by_level"]
        levels = [int(level) for level in rows]
        low, middle, high = ([r[k] for r in rows.values()] for k in ("worst", "average", "best"))
        axes.fill_between(levels, low, high, color=COLOURS[kind], alpha=0.15)
        axes.plot(levels, middle, "o-", ms=4, color=COLOURS[kind], label=f"{kind}, average")
    axes.plot(
        levels, [r["blind"] for r in rows.values()], ":", color="#999", label="best of 5 guesses"
    )
    axes.axvspan(max(result["learnt_levels"]) + 0.5, max(levels) + 0.3, color="#eee", zorder=0)
    axes.set(title=f"{things}: five samples, worst to best", xlabel=f"{unit} (grey: none learnt)",
             ylabel="right")  # fmt: skip


def _more_samples(axes: Any, family: str, result: dict[str, Any]) -> None:
    things, unit = NAMES[family]
    whole = result["players"]["search"]["by_level_whole"]
    shown = [str(v) for v in sorted({*result["learnt_levels"][1::2], max(map(int, whole))})]
    for shade, level in enumerate(shown):
        colour = (0.1 + 0.22 * shade, 0.3 + 0.15 * shade, 0.65)
        row = whole[level]
        axes.plot(row["n"], row["best"], "-", color=colour, label=f"{level} {unit}")
        axes.plot(row["n"], row["blind"], ":", color=colour)
    axes.set_xscale("log", base=2)
    axes.set(title=f"{things}: best of n by search (dots: guesses)", xlabel="samples")


def _rounds(axes: Any, family: str, result: dict[str, Any]) -> None:
    things, unit = NAMES[family]
    for kind, player in result["players"].items():
        rows = player["sequential"]["oracle"]
        calls = [row["calls"] for row in rows]
        for key, style, label in (
            ("sequential", "o-", "with hints"),
            ("parallel_without_repeats", "--", "without, no repeats"),
            ("parallel", ":", "without"),
        ):
            axes.plot(calls, [row[key] for row in rows], style, ms=4, color=COLOURS[kind],
                      label=f"{kind} {label}")  # fmt: skip
    low, high = min(result["levels_in_rounds"]), max(result["levels_in_rounds"])
    axes.set(title=f"{things} of {low} to {high} {unit}: a critic", xlabel="calls")
