"""`capax train procbench`: a tiny model that follows one procedure."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import encoding_option, needs_torch, reporter, run_options

TOKENS = 4096  # of a step


@click.command("procbench")
@run_options(steps=1600, unit="Steps of 4,096 characters.")
@click.option(
    "--task", type=click.Choice(["Rhythm", "PushPop"]), default="Rhythm", show_default=True,
    help="The task of ProcBench that it learns: Rhythm with 2 to 8 steps, PushPop with 2 to 6.",
)  # fmt: skip
@encoding_option
def command(folder: Path, task: str, steps: int, encoding: str, seed: int, threads: int) -> None:
    """Train a Llama of a million parameters on one task of ProcBench, in minutes.

    It reads the question alone and writes every state. Writes DIR/TASK.gguf; the same command goes
    on where it was stopped.
    """
    with needs_torch():
        from capax.measuring.procbench.specialty import specialty_named
        from capax.training.record_run import RecordRecipe, train_on_records, write_model

    learnt = specialty_named(task)
    recipe = RecordRecipe(task=task, steps=steps, tokens=TOKENS, seed=seed)
    model = train_on_records(learnt, recipe, folder, threads=threads, on_report=reporter(steps))
    path = write_model(model, learnt, recipe, folder, encoding)
    console().note(
        f"{path}: next, capax measure procbench {path} --ask question --tasks {task} "
        f"--steps 2-25 --max-tokens {learnt.context_len * 3 // 4} -o answers.jsonl"
    )
