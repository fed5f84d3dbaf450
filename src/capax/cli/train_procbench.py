"""`capax train procbench`: a tiny model that follows one procedure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from capax.cli.console import console


@click.command("procbench")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the run; one that exists is continued.",
)  # fmt: skip
@click.option(
    "--task", type=click.Choice(["Rhythm", "PushPop"]), default="Rhythm", show_default=True,
    help="The task of ProcBench that it learns, with 2 to 8 steps.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=1600, show_default=True, metavar="N",
    help="Steps of 4,096 characters.",
)  # fmt: skip
@click.option(
    "--encoding", type=click.Choice(["F32", "F16", "Q8_0"]), default="Q8_0", show_default=True,
    help="Of the weights in the model file.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), default=2, show_default=True, metavar="N",
    help="Threads.",
)  # fmt: skip
def command(folder: Path, task: str, steps: int, encoding: str, seed: int, threads: int) -> None:
    """Train a Llama of a million parameters on one task of ProcBench, in minutes.

    It reads the question alone and writes every state. Writes DIR/TASK.gguf; the same command goes
    on where it was stopped.
    """
    from capax.errors import ConfigError

    try:
        from capax.measuring.procbench.specialist_recipe import ProcbenchRecipe
        from capax.training.record_run import train_on_records, write_model
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error

    def say(line: Mapping[str, float]) -> None:
        console().note(f"step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}")

    recipe = ProcbenchRecipe(task=task, steps=steps, seed=seed)
    model = train_on_records(recipe, folder, threads=threads, on_report=say)
    path = write_model(model, recipe, folder, encoding)
    console().note(
        f"{path}: next, capax measure procbench {path} --ask question --tasks {task} "
        "--steps 2-25 --max-tokens 1000 -o answers.jsonl"
    )
