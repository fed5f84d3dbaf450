"""`capax train arithmetic`: a tiny model that multiplies, or solves equations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from capax.cli.console import console


@click.command("arithmetic")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the run; one that exists is continued.",
)  # fmt: skip
@click.option(
    "--task", type=click.Choice(["multiplication", "direct", "search"]), default="multiplication",
    show_default=True, help="What it learns; 'direct' and 'search' answer the same equations.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=3000, show_default=True, metavar="N",
    help="Steps of 2,048 tokens.",
)  # fmt: skip
@click.option(
    "--questions", type=click.IntRange(1), default=64, show_default=True, metavar="N",
    help="Held-out questions to write.",
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
def command(
    folder: Path, task: str, steps: int, questions: int, encoding: str, seed: int, threads: int
) -> None:
    """Train a Llama of a million parameters on arithmetic, in minutes.

    Writes DIR/TASK.gguf and DIR/questions.jsonl, held-out questions for 'capax scale sample'.
    The same command goes on where it was stopped.
    """
    from capax.errors import ConfigError

    try:
        from capax.training.arithmetic_run import ArithmeticRecipe, write_questions
        from capax.training.record_run import train_on_records, write_model
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error

    def say(line: Mapping[str, float]) -> None:
        console().note(f"step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}")

    recipe = ArithmeticRecipe(task=task, steps=steps, seed=seed)
    model = train_on_records(recipe, folder, threads=threads, on_report=say)
    path = write_model(model, recipe, folder, encoding)
    write_questions(recipe, folder / "questions.jsonl", questions)
    console().note(f"{path}: next, capax scale sample {path} {folder}/questions.jsonl")
