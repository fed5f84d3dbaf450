"""`capax train arithmetic`: a tiny model that multiplies, or solves equations."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import encoding_option, needs_torch, reporter, run_options


@click.command("arithmetic")
@run_options(steps=3000, unit="Steps of 2,048 tokens.")
@click.option(
    "--task", type=click.Choice(["multiplication", "direct", "search"]), default="multiplication",
    show_default=True, help="What it learns; 'direct' and 'search' answer the same equations.",
)  # fmt: skip
@click.option(
    "--questions", type=click.IntRange(1), default=64, show_default=True, metavar="N",
    help="Held-out questions to write.",
)  # fmt: skip
@encoding_option
def command(
    folder: Path, task: str, steps: int, questions: int, encoding: str, seed: int, threads: int
) -> None:
    """Train a Llama of a million parameters on arithmetic, in minutes.

    Writes DIR/TASK.gguf and DIR/questions.jsonl, held-out questions for 'capax scale sample'.
    The same command goes on where it was stopped.
    """
    with needs_torch():
        from capax.training.arithmetic import task_named
        from capax.training.arithmetic_run import write_questions
        from capax.training.record_run import RecordRecipe, train_on_records, write_model

    learnt, recipe = task_named(task), RecordRecipe(task=task, steps=steps, seed=seed)
    model = train_on_records(learnt, recipe, folder, threads=threads, on_report=reporter(steps))
    path = write_model(model, learnt, recipe, folder, encoding)
    write_questions(learnt, folder / "questions.jsonl", questions)
    console().note(f"{path}: next, capax scale sample {path} {folder}/questions.jsonl")
