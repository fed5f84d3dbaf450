"""The page of a run of generated tasks: what repeated runs show, by difficulty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capax.files.page import Table, page
from capax.files.picture import has_matplotlib, svg_of

CURVES = ("best", "majority", "average", "worst")


def study_page(name: str, reports: Mapping[str, Mapping[str, Any]], settings: str) -> str:
    """Return the page of reports by family; curves are left out without matplotlib."""
    n = sum(figures["n_instances"] for figures in reports.values())
    summary = (
        f"{n:,} tasks. Worst and best are of all samples of a task, the vote shares ties, blind is "
        "the best that as many uniform guesses get; what lies above it is the model's. What a "
        "small model shows here is the shape of these curves, and nothing about large ones."
    )
    tables = [
        table
        for family, figures in reports.items()
        for table in (_table(family, figures), _superscaling(family, figures))
    ]
    alt = "worst, average, vote, best and blind guessing over difficulty, by family"
    svg = curves(reports) if has_matplotlib() else None
    return page(f"Generated tasks: {name}", summary, tables, settings, svg=svg, alt=alt)


def _table(family: str, figures: Mapping[str, Any]) -> Table:
    constant = "; ".join(
        f"always answering {answer!r} scores {score:.1%}"
        for answer, score in figures["constant_answers"].items()
    )
    note = (
        f"{figures['repeats']} samples each, {figures['tokens_mean']:,.0f} tokens per sample, "
        f"{figures['format_failure_rate']:.1%} unreadable, which count as wrong"
    )
    parts = [
        *figures["by_level"].items(),
        *figures["by_cell"].items(),
        *figures["by_truth"].items(),
        ("all", figures),
    ]
    return Table(
        ("level", "tasks", "worst", "average", "vote", "best", "blind", "above blind", "tokens"),
        [
            (
                str(level),
                f"{row['n_instances']:,}",
                *(f"{row[field]:.1%}" for field in ("worst", "average", "majority", "best")),
                f"{row['blind_best_of'][str(row['repeats'])]:.1%}",
                f"{row['above_blind'][str(row['repeats'])]:+.1%}",
                f"{row['tokens_mean']:,.0f}",
            )
            for level, row in parts
        ],
        title=family,
        note=f"{note}. {constant}".strip(),
        best=frozenset({len(parts) - 1}),
    )


def _superscaling(family: str, figures: Mapping[str, Any]) -> Table:
    """Best of n over n, of all tasks and of the easiest and the hardest level."""
    levels = list(figures["by_level"])
    parts = {"all": figures}
    if len(levels) > 1:
        parts |= {f"level {level}": figures["by_level"][level] for level in (levels[0], levels[-1])}
    heads = [f"{name}{kind}" for name in parts for kind in (": best", ": blind")]
    return Table(
        ("calls", *heads),
        [
            (
                n,
                *(
                    f"{row[kind][n]:.1%}" if n in row[kind] else ""
                    for row in parts.values()
                    for kind in ("best_of", "blind_best_of")
                ),
            )
            for n in figures["best_of"]
        ],
        title=f"{family}: best of so many parallel calls",
        note="Estimated from all samples of a task, not from the first ones.",
    )


def curves(reports: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the curves over difficulty as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * min(len(reports), 3), 3.0 * -(-len(reports) // 3)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(-(-len(reports) // 3), min(len(reports), 3), squeeze=False).ravel()
    for axes in panels[len(reports) :]:
        axes.set_axis_off()
    for axes, (family, figures) in zip(panels, reports.items(), strict=False):
        levels = [int(level) for level in figures["by_level"]]
        rows = list(figures["by_level"].values())
        for curve in CURVES:
            axes.plot(levels, [row[curve] for row in rows], "o-", ms=3, label=curve)
        blind = [row["blind_best_of"][str(row["repeats"])] for row in rows]
        axes.plot(levels, blind, ":", color="#888", label="blind best")
        axes.set(title=family, xlabel="level", ylim=(-0.03, 1.03), xticks=levels)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right")
    panels[0].legend(fontsize=7)
    return svg_of(figure)
