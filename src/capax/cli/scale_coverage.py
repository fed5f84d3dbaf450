"""`capax scale coverage`: what k samples of a run solve, and what more would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option
from capax.files.picture import require_matplotlib, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from capax.scaling.coverage import Forecast, Point, PowerLaw
    from capax.scaling.selection import Selected


class CountsType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """Numbers of samples with commas between: 1,10,100."""

    name = "counts"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace("_", "").split(",")
        if not all(part.isdecimal() and int(part[:12]) >= 1 for part in parts):
            self.fail(f"{value!r:.40} is no list of whole numbers like 1,10,100", param, ctx)
        return tuple(sorted({int(part[:12]) for part in parts}))


@click.command("coverage")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--k", "ks", type=CountsType(), metavar="K,K", help="Default: 1, 2, 4 and so on.")
@click.option("--fit", is_flag=True, help="Fit the power law, in both spaces.")
@click.option(
    "--forecast", "forecast_ks", type=CountsType(), metavar="K,K",
    help="Extrapolate to these numbers of samples.",
)  # fmt: skip
@click.option(
    "--at-coverage", type=click.FloatRange(0, 1, min_open=True), metavar="C",
    help="Say how many samples a coverage takes.",
)  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the curve.")
@json_option
def command(
    run: Path,
    ks: tuple[int, ...] | None,
    fit: bool,
    forecast_ks: tuple[int, ...] | None,
    at_coverage: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the share of problems that k samples of RUN solve.

    Coverage counts a problem if any sample is right; the vote is what majority voting makes of the
    same samples without knowing. Errors are over new samples of the same problems (none
    where k is more than half of the samples), bands over other problems.
    """
    from capax.scaling.coverage import curve, fit_power_law, forecast, samples_needed
    from capax.scaling.sampling import load
    from capax.scaling.selection import accuracy_of, majority

    outcome = load(run)
    counts = outcome.counts
    if ks is None:
        ks = tuple(sorted({2**i for i in range(counts.n_min.bit_length())} | {counts.n_min}))
    points = curve(counts, ks)
    votes = accuracy_of(majority, outcome.answers, ks)
    laws = [fit_power_law(counts, space) for space in ("log", "coverage")] if fit else []
    forecasts = forecast(counts, forecast_ks) if forecast_ks else []
    report: dict[str, Any] = {
        "problems": counts.n_problems,
        "samples": {"fewest": counts.n_min, "all": int(counts.n.sum())},
        "unsolved": int((counts.correct == 0).sum()),
        "distinct_texts": outcome.distinct_texts,
        "mean_new_tokens": _number(outcome.mean_new_tokens),
        "coverage": [{**p._asdict(), "stderr": _number(p.stderr)} for p in points],
        "majority": [vote._asdict() for vote in votes],
        "fits": [law._asdict() for law in laws],
        "forecasts": [point._asdict() for point in forecasts],
    }
    if at_coverage is not None:
        report["samples_needed"] = samples_needed(counts, at_coverage)
    if plot is not None:
        draw(plot, points, votes, laws, forecasts)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    _print(report, at_coverage)


def _number(value: float) -> float | None:
    return None if value != value else value


def _print(report: dict[str, Any], at_coverage: float | None) -> None:
    click.echo(
        f"{report['problems']:,} problems, {report['samples']['all']:,} samples "
        f"({report['distinct_texts']:.1%} distinct), {report['unsolved']:,} problems never solved"
    )
    click.echo(f"{'k':>10} {'coverage':>9} {'+-':>7} {'95 % band':>15} {'vote':>7}")
    for point, vote in zip(report["coverage"], report["majority"], strict=True):
        error = "-" if point["stderr"] is None else f"{point['stderr']:.4f}"
        band = f"{point['low']:.4f}-{point['high']:.4f}"
        click.echo(
            f"{point['k']:>10,} {point['coverage']:>9.4f} {error:>7} {band:>15} "
            f"{vote['accuracy']:>7.4f}"
        )
    for law in report["fits"]:
        click.echo(
            f"exp({law['a']:.3f} k^{law['b']:.3f}) fitted to {law['space']}"
            f"{' coverage' if law['space'] == 'log' else ' itself'}, "
            f"error {law['error_mean']:.4f} +- {law['error_std']:.4f}"
        )
    for point in report["forecasts"]:
        click.echo(
            f"forecast for k = {point['k']:,}: {point['coverage']:.4f} "
            f"(95 % {point['low']:.4f}-{point['high']:.4f}, beta-binomial)"
        )
    if at_coverage is not None:
        needed = report["samples_needed"]
        click.echo(
            f"coverage {at_coverage:g} takes "
            f"{'more samples than there are' if needed is None else f'{needed:,} samples'}"
        )


def draw(
    path: Path,
    points: list[Point],
    votes: list[Selected],
    laws: list[PowerLaw],
    forecasts: list[Forecast],
) -> None:
    """Write a picture of the curve. Raises ConfigError without matplotlib."""
    require_matplotlib()
    save_picture(path, figure_of(points, votes, laws, forecasts))


def figure_of(
    points: list[Point],
    votes: list[Selected],
    laws: list[PowerLaw],
    forecasts: list[Forecast],
) -> Figure:
    """Return the picture. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ks = [point.k for point in points]
    axes.fill_between(
        ks, [p.low for p in points], [p.high for p in points], alpha=0.2, label="95 % over problems"
    )
    axes.plot(ks, [p.coverage for p in points], "o-", label="coverage")
    axes.plot(ks, [vote.accuracy for vote in votes], "s--", label="majority vote")
    for law in laws:
        axes.plot(ks, law.at(ks), ":", label=f"power law, {law.space}")
    if forecasts:
        middle = [f.coverage for f in forecasts]
        errors = [
            [f.coverage - f.low for f in forecasts],
            [f.high - f.coverage for f in forecasts],
        ]
        axes.errorbar([f.k for f in forecasts], middle, errors, fmt="x", label="forecast")
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("samples per problem")
    axes.set_ylabel("share of problems solved")
    axes.legend()
    return figure
