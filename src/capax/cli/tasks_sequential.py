"""`capax scale tasks sequential`: answers after feedback, beside as many independent ones."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.asked import Where, progress_of, where_options
from capax.cli.options import json_option, model_argument

if TYPE_CHECKING:
    from capax.scaling.complex.critic import Rounds


@click.command("sequential")
@model_argument
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
    help="Runs as JSON lines; what was stopped goes on.",
)  # fmt: skip
@click.option(
    "--critic", type=click.Choice(["oracle", "self"]), default="oracle", show_default=True,
    help="Feedback from the exact check, which tells what is wrong, or from the model itself.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1, 64), default=3, show_default=True, metavar="N",
    help="Answers to a task at most.",
)  # fmt: skip
@click.option(
    "--parallel", type=click.Path(path_type=Path), metavar="RUN",
    help="A run of 'capax scale sample' over TASKS, to compare with at equal calls.",
)  # fmt: skip
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N",
    help="Of an answer.",
)  # fmt: skip
@click.option("--temp", "temperature", type=float, default=1.0, show_default=True, metavar="T",
              help="Temperature.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N tasks.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@where_options
@json_option
def command(
    model: str,
    tasks_file: Path,
    out: Path,
    critic: str,
    rounds: int,
    parallel: Path | None,
    max_tokens: int,
    temperature: float,
    limit: int | None,
    seed: int,
    where: Where,
    as_json: bool,
) -> None:
    """Let MODEL answer each task, tell it what is wrong, and let it answer again.

    With --parallel the table has what as many independent calls solve, and what they solve when
    repeated answers are left out: being told "wrong" is worth that much by itself.
    """
    from capax import SamplingParams
    from capax.endpoints import Ledger
    from capax.scaling.complex.critic import Critic, OracleCritic, SelfCritic
    from capax.scaling.complex.sequential_run import instances_of, run_sequential, table
    from capax.scaling.complex.stored import played_of_run
    from capax.scaling.tasks import read_tasks

    tasks = read_tasks(tasks_file, limit=limit)
    instances = instances_of(tasks)
    samples = None
    if parallel is not None:
        samples = [p for found in played_of_run(parallel, tasks).values() for p in found]
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    settings = {
        "model": where.identity(model), "critic": critic, "rounds": rounds, "seed": seed,
        "max_tokens": max_tokens, "temperature": temperature,
    }  # fmt: skip

    async def run() -> list[Rounds]:
        opened = where.open(model, parallel=8, ledger=Ledger())
        async with opened as endpoint:
            chosen: Critic = OracleCritic()
            if critic == "self":
                chosen = SelfCritic(endpoint, params)
            return await run_sequential(
                endpoint, instances, chosen, params, out, settings, rounds=rounds, seed=seed,
                progress=progress_of("tasks"),
            )  # fmt: skip

    rows = table(asyncio.run(run()), samples, rounds)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(f"{'calls':>5} {'solved':>8} {'parallel':>9} {'no repeats':>11} "
               f"{'tokens':>8} {'critic':>8}")  # fmt: skip
    for row in rows:
        beside = [row.get("parallel"), row.get("parallel_without_repeats")]
        shown = ["-" if x is None else f"{x:.1%}" for x in beside]
        click.echo(
            f"{row['calls']:>5} {row['sequential']:>8.1%} {shown[0]:>9} {shown[1]:>11} "
            f"{row['answer_tokens']:>8,.0f} {row['critic_tokens']:>8,.0f}"
        )
