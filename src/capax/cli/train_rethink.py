"""`capax train rethink`: a tiny model that adds, and corrects itself in rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from capax.cli.console import console


@click.command("rethink")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the run; one that exists is continued.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=2500, show_default=True, metavar="N",
    help="Steps of the run.",
)  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="Seed.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
    help="Threads.",
)  # fmt: skip
def command(folder: Path, steps: int, seed: int, threads: int) -> None:
    """Train a tiny Llama that adds numbers, and answers again when it sees its last answer.

    The same command goes on where it was stopped. 'capax scale rounds DIR/rethink.gguf' runs it.
    """
    from capax.errors import ConfigError

    try:
        from capax.training.rethink import RethinkRecipe, train_rethink
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error

    def say(line: Mapping[str, float]) -> None:
        console().note(f"step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}")

    path = train_rethink(
        folder, RethinkRecipe(steps=steps, seed=seed), threads=threads, on_report=say
    )
    console().note(f"{path}: next, capax scale rounds {path} TASKS --again '?'")
