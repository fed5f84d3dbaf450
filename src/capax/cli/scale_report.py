"""`capax scale report`: results.json, report.md, report.html and the curve of a run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from capax.cli.options import json_option
from capax.cli.run_reports import report_run


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--no-plot", is_flag=True, help="Leave the picture out; it needs capax[plots].")
@click.option(
    "--lm-eval-out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Also write DIR/MODEL/results_TIME.json and samples_TASK_TIME.jsonl, as lm-eval does.",
)  # fmt: skip
@json_option
def command(run: Path, no_plot: bool, lm_eval_out: Path | None, as_json: bool) -> None:
    """Write results.json, report.md, report.html and the picture in plots/ of RUN.

    results.json has the shape of lm-eval's. All are made from the run's own files, and can be
    made again; the commands that make runs write them at their end.
    """
    from capax.cli.console import console
    from capax.scaling.lm_eval_results import export_run

    results = report_run(run, with_picture=not no_plot)
    if lm_eval_out is not None:
        for path in export_run(run, results, lm_eval_out):
            console().note(str(path))
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    for checker, figures in results["results"].items():
        n = results["n-samples"][checker]["effective"]
        click.echo(f"{checker}: {n:,} problems, accuracy {figures['acc,none']:.4f}")
    click.echo(f"{run / 'report.html'}")
