"""`capax train swarm`: tiny models that answer equations and judge each other's answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import click

from capax.cli.console import console

QUESTIONS, GOLD = 150, 40  # of 202 held-out equations


@click.command("swarm")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the runs, one folder for each node; what exists is continued.",
)  # fmt: skip
@click.option(
    "--node", "names", multiple=True,
    type=click.Choice(["node0", "node1", "node2", "node3", "node4", "deaf"]),
    help="Some of the nodes; 'deaf' is a judge for control. May be repeated. Default: all.",
)  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path, exists=True), required=True, metavar="FILE",
    help="What they begin with: the model of 'capax train arithmetic --task search'.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1), default=300, show_default=True, metavar="N",
    help="Steps of 2,048 tokens, for each node.",
)  # fmt: skip
@click.option(
    "--encoding", type=click.Choice(["F32", "F16", "Q8_0"]), default="Q8_0", show_default=True,
    help="Of the weights in the model files.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), default=2, show_default=True, metavar="N",
    help="Threads.",
)  # fmt: skip
def command(
    folder: Path,
    names: tuple[str, ...],
    base: Path,
    steps: int,
    encoding: str,
    seed: int,
    threads: int,
) -> None:
    """Train nodes of a swarm: a million parameters each, some minutes each.

    Each knows the answers to a fifth of the equations, and judges answers to all of them by trial.
    Writes DIR/NAME.gguf, and nodes.json, questions.jsonl and gold.jsonl for 'capax scale swarm'.
    """
    from capax.errors import ConfigError

    try:
        from capax.training.gguf_import import read_llama_gguf
        from capax.training.record_run import train_on_records, write_model
        from capax.training.swarm import NODES
        from capax.training.swarm_run import SwarmRecipe, write_nodes, write_questions
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error

    begin = read_llama_gguf(base)
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    for number, name in enumerate(NODES):
        if names and name not in names:
            continue

        def say(line: Mapping[str, float], name: str = name) -> None:
            console().note(f"{name}: step {line['step']:,} of {steps:,}: loss {line['loss']:.3f}")

        recipe = SwarmRecipe(task=name, steps=steps, seed=seed + number, base=digest)
        model = train_on_records(recipe, folder / name, threads=threads, on_report=say, begin=begin)
        console().note(str(write_model(model, recipe, folder, encoding)))
    write_questions(folder, QUESTIONS, GOLD)
    console().note(f"next, capax scale swarm bench {write_nodes(folder)} {folder}/questions.jsonl")
