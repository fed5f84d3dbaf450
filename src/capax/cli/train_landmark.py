"""`capax train landmark`: a small model whose landmark tokens index its own past."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from capax.cli.console import console


@click.command("landmark")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the run; one that exists is continued.",
)  # fmt: skip
@click.option("--twin", "is_twin", is_flag=True, help="Train the twin without landmarks instead.")
@click.option("--steps", default=900, show_default=True, metavar="N", help="Stop after so many.")
@click.option("--seed", default=1, show_default=True, metavar="N", help="Of weights and data.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
    help="Threads.",
)  # fmt: skip
def command(folder: Path, is_twin: bool, steps: int, seed: int, threads: int) -> None:
    """Train a small Llama with landmark attention on Python's own documentation and pass keys.

    Its twin sees the same documents with plain attention. Use the model by
    'capax run DIR/landmark --kv landmark:k=4'. The same command goes on where it was stopped.
    """
    from capax.errors import ConfigError

    try:
        from capax.training.landmark import LandmarkRecipe
        from capax.training.landmark_run import train_landmark
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error
    recipe = LandmarkRecipe(steps=steps, seed=seed)

    def say(line: Mapping[str, float]) -> None:
        console().note(
            f"step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}, "
            f"pass key {line['pass_key']:.0%} in windows of {line['window']}"
        )

    path = train_landmark(folder, recipe, is_twin=is_twin, threads=threads, on_report=say)
    options = "" if is_twin else " --kv landmark:k=4"
    console().note(f"{path}: next, capax run {path}{options}")
