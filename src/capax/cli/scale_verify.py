"""`capax scale verify`: check the samples of a run again."""

from __future__ import annotations

import json
from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.options import json_option


@click.command("verify")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option("--checker", metavar="NAME", help="Checker of tasks that name none.")
@json_option
def command(run: Path, tasks_file: Path, checker: str | None, as_json: bool) -> None:
    """Check the stored samples of RUN with the references and checkers of TASKS.

    No model is asked. Samples that have a verdict of the same checker and version keep it; other
    verdicts stay in the file, and 'capax scale coverage' counts the new ones.
    """
    from capax.scaling.sampling import load, verify_again
    from capax.scaling.tasks import read_tasks

    n = verify_again(run, read_tasks(tasks_file, checker))
    counts = load(run).counts
    n_samples, n_right = int(counts.n.sum()), int(counts.correct.sum())
    if as_json:
        report = {"run": str(run), "checked": n, "samples": n_samples, "right": n_right}
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"{run}: {n:,} samples checked, {n_right:,} of {n_samples:,} are right")
    console().note(f"next: capax scale coverage {run}")
