"""`capax train ladder`: the small reference models that a ruler of densities is fitted on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from capax.cli.console import console
from capax.cli.training import needs_torch
from capax.errors import ConfigError

SIZES = ("12k", "19k", "28k", "37k", "62k", "93k")


@click.command("ladder")
@click.option(
    "-o", "--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder of the runs; one that exists is continued.",
)  # fmt: skip
@click.option(
    "--size", "sizes", type=click.Choice(SIZES), multiple=True, default=SIZES[:4],
    show_default=True, help="Parameters of a model without its embedding; give it several times.",
)  # fmt: skip
@click.option(
    "--ratio", "ratios", type=click.FloatRange(1), multiple=True, metavar="R",
    default=(10, 15, 20, 30, 40, 60), show_default=True,
    help="Training tokens per parameter; give it several times.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
    help="Threads.",
)  # fmt: skip
def command(
    folder: Path, sizes: tuple[str, ...], ratios: tuple[float, ...], seed: int, threads: int
) -> None:
    """Train small models of several sizes on several token counts, one run per size.

    Writes ladder.csv and scores.csv, which 'capax measure density --ladder --scores' fits. The
    same command goes on where it was stopped.
    """
    with needs_torch():
        from capax.training.ladder import LADDER, Exam, climb

    exam, points = Exam(), list[dict[str, Any]]()
    for size in dict.fromkeys(sizes):

        def say(point: Mapping[str, Any], size: str = size) -> None:
            console().note(
                f"{size}, {point['phase']} at {point['ratio']:g} tokens per parameter: "
                f"loss {point['loss']:.3f}, score {point['score']:.1%}"
            )

        points += climb(
            LADDER[size], folder / size, ratios=ratios, exam=exam, seed=seed, threads=threads,
            on_point=say,
        )  # fmt: skip
    decayed = [p for p in points if p["phase"] == "decayed"]
    write_table(folder / "ladder.csv", ("params", "tokens", "loss"), decayed)
    write_table(folder / "scores.csv", ("loss", "score"), points)
    console().note(
        f"next: capax measure density TABLE --ladder {folder}/ladder.csv "
        f"--scores {folder}/scores.csv --tokens D0"
    )


def write_table(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write these columns as CSV. Raises ConfigError where they cannot be written."""
    try:
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(names)
            table.writerows([row[name] for name in names] for row in rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from None
