"""`capax measure export`: records as lm-evaluation-harness writes its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from capax.cli.record_view import chosen_by_name, listed, records_option
from capax.errors import ConfigError


@click.command("export")
@click.argument("wanted", metavar="[RECORD]...", nargs=-1)
@records_option
@click.option(
    "--lm-eval-out", "out", required=True, type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR", help="Folder to write <model>/results_<time>.json into.",
)  # fmt: skip
def command(wanted: tuple[str, ...], records: Path | None, out: Path) -> None:
    """Write RECORDs (default: the latest of each model and task) as lm-evaluation-harness does.

    A run directory gets a samples_<task>_<time>.jsonl beside its results.
    """
    from capax.cli.run_records import is_run, samples_of_run
    from capax.measuring.lm_eval_tables import export, model_label, task_name

    samples: dict[str, list[dict[str, Any]]] = {}
    if wanted:
        picked = []
        for name, found in chosen_by_name(records, wanted):
            picked += found
            if len(found) == 1 and is_run(Path(name)):
                samples[found[0].id] = samples_of_run(Path(name))
    else:
        latest = {(model_label(f.record), task_name(f.record)): f.record for f in listed(records)}
        picked = list(latest.values())
    if not picked:
        raise ConfigError("there are no records to export; 'capax measure --help' lists measures")
    for path in export(picked, out, samples):
        click.echo(str(path))
