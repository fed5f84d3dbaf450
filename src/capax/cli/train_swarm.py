"""`capax train swarm`: tiny models that answer equations and judge each other's answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import encoding_option, needs_torch, reporter, run_options

QUESTIONS, GOLD = 150, 40  # of 202 held-out equations


@click.command("swarm")
@run_options(
    steps=300, unit="Steps of 2,048 tokens, for each node.",
    folder="Folder of the runs, one folder for each node; what exists is continued.",
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
@encoding_option
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
    with needs_torch():
        from capax.training.gguf_import import read_llama_gguf
        from capax.training.record_run import train_on_records, write_model
        from capax.training.swarm import NODES
        from capax.training.swarm_run import SwarmRecipe, write_nodes, write_questions

    begin = read_llama_gguf(base)
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    for number, (name, node) in enumerate(NODES.items()):
        if names and name not in names:
            continue
        recipe = SwarmRecipe(task=name, steps=steps, seed=seed + number, base=digest)
        model = train_on_records(
            node, recipe, folder / name, threads=threads, on_report=reporter(steps, name),
            begin=begin,
        )  # fmt: skip
        console().note(str(write_model(model, node, recipe, folder, encoding)))
    write_questions(folder, QUESTIONS, GOLD)
    console().note(
        f"next, capax scale swarm bench {write_nodes(folder)} {folder}/questions.jsonl "
        f"--gold {folder}/gold.jsonl"
    )
