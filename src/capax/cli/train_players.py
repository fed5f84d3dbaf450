"""`capax train players`: tiny models that play generated tasks."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import encoding_option, needs_torch, reporter, run_options


@click.command("players")
@run_options(
    steps=1300, unit="Steps of 2,048 tokens, for each player.",
    folder="Folder of the runs, one folder for each player; what exists is continued.",
)  # fmt: skip
@click.option(
    "--player", "names", multiple=True,
    type=click.Choice(["tsp-direct", "tsp-search", "3sat-direct", "3sat-search"]),
    help="Some of the players. May be repeated. Default: all.",
)  # fmt: skip
@click.option(
    "--per-level", type=click.IntRange(1, 1000), default=40, show_default=True, metavar="N",
    help="Held-out tasks of each level to write.",
)  # fmt: skip
@encoding_option
def command(
    folder: Path,
    names: tuple[str, ...],
    per_level: int,
    steps: int,
    encoding: str,
    seed: int,
    threads: int,
) -> None:
    """Train players of generated tasks: a million parameters each, some minutes each.

    Of two for each family one answers at once and one after a search; both take hints. Writes
    DIR/NAME.gguf, and tsp.jsonl and 3sat.jsonl: tasks nothing was learnt from, for the commands of
    'capax scale'.
    """
    with needs_torch():
        from capax.scaling.complex.players import PLAYERS
        from capax.scaling.complex.players.held_out import write_held_out
        from capax.training.record_run import RecordRecipe, train_on_records, write_model

    for name, player in PLAYERS.items():
        if names and name not in names:
            continue
        recipe = RecordRecipe(task=name, steps=steps, seed=seed)
        model = train_on_records(
            player, recipe, folder / name, threads=threads, on_report=reporter(steps, name)
        )
        path = write_model(
            model, player, recipe, folder, encoding, chat_template=player.chat_template
        )
        console().note(str(path))
    for file in write_held_out(folder, per_level):
        console().note(f"next, capax scale sample {folder}/PLAYER.gguf {file} --temp 1")
