"""`capax scale markers`: do right answers read differently from wrong ones?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.scaling.markers import Traces, Within


@click.command("markers")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--with-capped", is_flag=True, help="Count samples that were cut off as well.")
@click.option(
    "--calibrate", is_flag=True,
    help="Fit marks for votes=marked on one half of the problems, judge them on the other.",
)  # fmt: skip
@click.option(
    "--k", type=click.IntRange(1), metavar="N",
    help="Samples of a vote to judge by. Default: all.",
)  # fmt: skip
@json_option
def command(run: Path, with_capped: bool, calibrate: bool, k: int | None, as_json: bool) -> None:
    """Compare lengths and marking words of right and wrong samples.

    RUN is a run of 'capax scale sample', or JSONL with {"id", "text", "correct"} per sample and
    perhaps "tokens", "source" (its model) and "capped". Words per 1,000 tokens: hedging (perhaps,
    might), thinking (wait, hmm), discourse (therefore, so). Believe the rows within problems:
    pooled ones mix in how hard the problems are. Samples that were cut off are left out.
    """
    from capax.scaling.markers import marker_report, read_traces

    if k is not None and (not calibrate or not run.is_dir()):
        raise ConfigError("--k is of the votes that --calibrate judges on a run; leave it out")
    traces = read_traces(run)
    found = marker_report(traces, with_capped=with_capped)
    report: dict[str, Any] = asdict(found)
    if calibrate:
        report["calibration"] = _calibrated(run, traces, k)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(
        f"{found.n_samples:,} samples, {found.n_capped:,} cut off"
        f"{'' if with_capped else ' and left out'}; words: "
        + ", ".join(f"{n:,} {name}" for name, n in found.n_markers.items())
    )
    click.echo(f"{'pooled':<18} {'right':>9} {'wrong':>9} {'delta':>7} {'p':>9}")
    for name, row in found.pooled.items():
        click.echo(
            f"{name:<18} {row.right:>9.2f} {row.wrong:>9.2f} {row.delta:>+7.3f} {row.p:>9.2g}"
        )
    _print_within("within problems", found.within)
    if found.by_source:
        _print_within("less its model's", found.by_source)
    if calibrate:
        _print_calibration(report["calibration"])


def _calibrated(run: Path, traces: Traces, k: int | None) -> dict[str, Any]:
    import numpy as np

    from capax.scaling.calibration import area_within, fit, split
    from capax.scaling.marked_votes import marked_votes
    from capax.scaling.selecting import read_pools

    dev, test = split(traces)
    calibration = fit(dev)
    report: dict[str, Any] = {
        "marks": str(calibration.marks),
        "n_problems": len(calibration.problem_hashes),
        "area": asdict(area_within(calibration, test)),
    }
    if run.is_dir():
        fewest = int(np.unique(test.problems, return_counts=True)[1].min())
        votes = marked_votes(read_pools(run), test, calibration, k or fewest)
        report["votes"] = asdict(votes)
    return report


def _print_within(title: str, rows: Mapping[str, Within]) -> None:
    click.echo(
        f"{title:<18} {'mean':>9} {'median':>9} {'delta':>7} {'p':>9} {'corrected':>9}  right is"
    )
    for name, row in rows.items():
        click.echo(
            f"{name:<18} {row.mean:>+9.2f} {row.median:>+9.2f} {row.delta:>+7.3f} {row.p:>9.2g} "
            f"{row.p_corrected:>9.2g}  {row.verdict}"
        )
    click.echo(f"problems with right and wrong samples: {next(iter(rows.values())).n_problems:,}")


def _print_calibration(found: dict[str, Any]) -> None:
    area = found["area"]
    click.echo(
        f"fitted on {found['n_problems']:,} problems; on {area['n_problems']:,} others a right "
        f"sample is weighed above a wrong one in {area['mean']:.1%} "
        f"(95 %: {area['low']:.1%}-{area['high']:.1%}; shuffled {area['shuffled']:.1%})"
    )
    if "votes" in found:
        votes = found["votes"]
        click.echo(
            f"vote of {votes['k']:,}: plain {votes['vote']:.4f}, marked {votes['marked']:.4f} "
            f"(difference +-{votes['stderr']:.4f}), odds {votes['marked_odds']:.4f}"
        )
    click.echo(f"majority:n=8,votes=marked,marks={found['marks']}")
