"""`capax scale tasks gap`: reasoning models against the best of several plain answers."""

from __future__ import annotations

import json
from pathlib import Path

import click

from capax.cli.options import json_option


@click.command("gap")
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "--reasoning", type=click.Path(path_type=Path), multiple=True, required=True, metavar="RUN",
    help="A run of a model that thinks before it answers; repeat for more models.",
)  # fmt: skip
@click.option(
    "--conventional", type=click.Path(path_type=Path), multiple=True, required=True, metavar="RUN",
    help="A run of a model that answers at once; repeat for more models.",
)  # fmt: skip
@click.option(
    "--best-of", "n", type=click.IntRange(1), default=5, show_default=True, metavar="N",
    help="Answers of a conventional model of which the best counts.",
)  # fmt: skip
@json_option
def command(
    tasks_file: Path,
    reasoning: tuple[Path, ...],
    conventional: tuple[Path, ...],
    n: int,
    as_json: bool,
) -> None:
    """Show the gap between reasoning and conventional models on TASKS, by family.

    It is the highest average of the reasoning models less the lowest best of N of the conventional
    ones: above 0, more calls to any plain model do not make up for thinking. With an interval of
    95 % over the tasks. Runs are of 'capax scale sample' over TASKS.
    """
    from capax.scaling.complex.stored import played_of_run
    from capax.scaling.complex.study import gap_of_runs
    from capax.scaling.tasks import read_tasks

    tasks = read_tasks(tasks_file)
    found = gap_of_runs(
        {str(run): played_of_run(run, tasks) for run in reasoning},
        {str(run): played_of_run(run, tasks) for run in conventional},
        n=n,
    )
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for family, row in found.items():
        low, high = row["interval"]
        click.echo(f"{family}: gap {row['gap']:+.3f} [{low:+.3f}, {high:+.3f}]")
        for kind, name in (("reasoning", "average"), ("conventional", f"best of {n}")):
            for run, value in row[kind].items():
                click.echo(f"  {kind:>12} {run:<24} {name} {value:.3f}")
