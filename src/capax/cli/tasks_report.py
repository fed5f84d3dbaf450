"""`capax scale tasks report`: what a run of generated tasks shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from capax.cli.options import json_option


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write a page with curves over difficulty too.",
)  # fmt: skip
@json_option
def command(run: Path, tasks_file: Path, html: Path | None, as_json: bool) -> None:
    """Show worst, average, majority and best of the samples in RUN, by family and level.

    TASKS is the file the run was made with. "blind" is the best that as many uniform guesses
    get: what lies "above" it is what the model adds.
    """
    from capax.files.registry import write_atomically
    from capax.files.run_folder import read_manifest
    from capax.scaling.complex.stored import played_of_run
    from capax.scaling.complex.study import report
    from capax.scaling.complex.study_report import study_page
    from capax.scaling.tasks import read_tasks

    reports = {
        family: report(played)
        for family, played in played_of_run(run, read_tasks(tasks_file)).items()
    }
    if html is not None:
        settings = json.dumps(read_manifest(run)["config"], indent=1, ensure_ascii=False)
        content = study_page(run.name, reports, settings)
        write_atomically(html, content.encode(), 0o644)
    if as_json:
        click.echo(json.dumps(reports, indent=2))
        return
    for family, figures in reports.items():
        click.echo(
            f"{family}: {figures['n_instances']:,} tasks, {figures['repeats']} samples each, "
            f"{figures['tokens_mean']:.0f} tokens per sample, "
            f"{figures['format_failure_rate']:.1%} unreadable"
        )
        click.echo(
            f"{'level':>17} {'worst':>7} {'average':>8} {'vote':>7} {'best':>7} {'blind':>7} "
            f"{'above':>7}"
        )
        parts = [*figures["by_level"].items(), *figures["by_truth"].items(), ("all", figures)]
        for level, row in parts:
            click.echo(_row(level, row))
        for answer, score in figures["constant_answers"].items():
            click.echo(f"always answering {answer!r}: {score:.3f}")


def _row(level: str, row: dict[str, Any]) -> str:
    blind = row["blind_best_of"][str(row["repeats"])]
    return (
        f"{level:>17} {row['worst']:>7.3f} {row['average']:>8.3f} {row['majority']:>7.3f} "
        f"{row['best']:>7.3f} {blind:>7.3f} {row['best'] - blind:>+7.3f}"
    )
