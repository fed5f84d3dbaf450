"""Writing the reports of a run of samples or rounds, with its picture where one can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capax.cli.console import console
from capax.errors import ConfigError
from capax.files.picture import has_matplotlib, svg_of


def report_run(path: Path, *, with_picture: bool = True) -> dict[str, Any]:
    """Write results.json, report.md, report.html and the picture of a run; returns the first.

    Raises what `write_report` does.
    """
    from capax.scaling.report import write_report

    if not with_picture:
        return write_report(path)
    if not has_matplotlib():
        console().note("no picture in the report; it needs: pip install 'capax[plots]'")
        return write_report(path)
    return write_report(path, draw_coverage=_coverage, draw_rounds=_rounds)


def report_what_is_there(path: Path) -> None:
    """Write the reports at the end of a command; a run without an answer to each task has none."""
    try:
        report_run(path)
    except ConfigError as e:
        console().note(f"no report yet: {e}")


def _coverage(points: Any, votes: Any) -> bytes:
    from capax.cli.scale_coverage import figure_of

    return svg_of(figure_of(points, votes, [], []))


def _rounds(chains: Any) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rounds = range(1, chains.n_rounds + 1)
    axes.plot(rounds, chains.ever_right(), "o-", label="any answer so far right")
    axes.plot(rounds, chains.last_right(), "s--", label="last answer right")
    axes.set_ylim(0, 1)
    axes.set_xlabel("rounds")
    axes.set_ylabel("share of chains")
    axes.legend()
    return svg_of(figure)
