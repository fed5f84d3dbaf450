"""`capax train rethink`: a tiny model that adds, and corrects itself in rounds."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import needs_torch, reporter, run_options


@click.command("rethink")
@run_options(steps=2500, unit="Steps of the run.", seed=1, threads=1)
def command(folder: Path, steps: int, seed: int, threads: int) -> None:
    """Train a tiny Llama that adds numbers, and answers again when it sees its last answer.

    The same command goes on where it was stopped. 'capax scale rounds DIR/rethink.gguf' runs it.
    """
    with needs_torch():
        from capax.training.rethink import RethinkRecipe, train_rethink

    path = train_rethink(
        folder, RethinkRecipe(steps=steps, seed=seed), threads=threads, on_report=reporter(steps)
    )
    console().note(f"{path}: next, capax scale rounds {path} TASKS --again '?'")
