"""`capax train knowledge`: a small model that learns synthetic people by heart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from capax.cli.console import console
from capax.cli.options import json_option


@click.command("knowledge")
@click.option("--people", type=int, default=1600, show_default=True, metavar="N", help="How many.")
@click.option(
    "--exposures", type=int, default=300, show_default=True, metavar="N",
    help="How often each is shown.",
)  # fmt: skip
@click.option("--layers", type=int, default=2, show_default=True, metavar="N", help="Layers.")
@click.option("--width", type=int, default=64, show_default=True, metavar="N", help="Width.")
@click.option(
    "--learning-rate", type=float, default=5e-3, show_default=True, metavar="R",
    help="Highest learning rate.",
)  # fmt: skip
@click.option(
    "--junk", type=click.Choice(["none", "fresh", "repeated"]), default="none", show_default=True,
    help="Seven other documents beside each useful one.",
)  # fmt: skip
@click.option("--tag", is_flag=True, help="Begin useful documents with a token of their own.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option(
    "--encoding", default="F32", show_default=True, metavar="TYPE",
    help="Encoding of every matrix: F32, F16, BF16, Q8_0, Q5_0, Q4_1 or Q4_0.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(1, 1024), default=1, metavar="N",
              help="Threads.")  # fmt: skip
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the run; one that exists is continued.",
)  # fmt: skip
@json_option
def command(encoding: str, threads: int, folder: Path, as_json: bool, **recipe_fields: Any) -> None:
    """Train a model on people that are drawn from a seed, and write it as GGUF.

    Prints the file, to be measured by 'capax measure knowledge'. The same command goes on where it
    was stopped.
    """
    from capax.measuring.knowledge.exposures import KnowledgeRecipe, train_knowledge, write_model

    recipe = KnowledgeRecipe(**recipe_fields)
    steps = recipe.steps
    console().note(f"{steps:,} steps of {recipe.batch} people, {recipe.width} wide")

    def report(line: Mapping[str, float]) -> None:
        console().note(f"step {line['step']:,} of {steps:,}: loss {line['loss']:.4f}")

    model = train_knowledge(recipe, folder, threads=threads, on_report=report)
    path = folder / f"model-{encoding}.gguf"
    write_model(model, path, encoding, recipe)
    if as_json:
        document = {"file": str(path), "parameters": model.n_parameters, "steps": steps}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(str(path))
