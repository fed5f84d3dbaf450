"""`capax scale tasks generate`: tasks of a family into a JSONL file."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.measure_procbench import StepsType


@click.command("generate")
@click.argument("family")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Task file to write, for 'capax scale sample'.",
)  # fmt: skip
@click.option("--levels", type=StepsType(), metavar="A-B", help="Default: those of the paper.")
@click.option(
    "--per-level", type=click.IntRange(1, 100_000), metavar="N",
    help="Tasks of each level. Default: as many as in the paper's set.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the tasks.")
@click.option("--completion", is_flag=True, help="Write prompts to continue, not chat messages.")
def command(
    family: str,
    out: Path,
    levels: tuple[int, ...] | None,
    per_level: int | None,
    seed: int,
    completion: bool,
) -> None:
    """Write tasks of FAMILY: 3sat, tsp, calendar, maze, spatial or arithmetic.

    The same seed writes the same bytes. No two tasks of a file are equal.
    """
    from capax.files.registry import write_atomically
    from capax.scaling.complex import family_named, generate
    from capax.scaling.complex.families import task_line

    made = generate(family_named(family), levels, per_level, seed)
    lines = [task_line(instance, chat=not completion) for instance in made]
    write_atomically(out, "".join(line + "\n" for line in lines).encode(), 0o644)
    console().note(
        f"{len(lines):,} tasks; next: capax scale sample MODEL {out} --samples 5 --temp 1"
    )
