"""`capax scale rounds`: let a model reconsider its answer, into a run directory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from capax.cli.asked import Where, where_options
from capax.cli.options import json_option, model_argument
from capax.cli.run_reports import report_what_is_there


@click.command("rounds")
@model_argument
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Run directory; one that exists is continued. Default: a new one in runs/.",
)  # fmt: skip
@click.option(
    "--chains", type=click.IntRange(1), default=4, show_default=True, metavar="N",
    help="Chains per task.",
)  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1), default=4, show_default=True, metavar="N",
    help="Answers of a chain.",
)  # fmt: skip
@click.option(
    "--history", type=click.Choice(["last", "all"]), default="last", show_default=True,
    help="Which answers a round sees.",
)  # fmt: skip
@click.option("--again", metavar="TEXT", help="What follows an answer that is shown.")
@click.option("--checker", metavar="NAME", help="Checker of tasks that name none.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Tokens per answer.",
)  # fmt: skip
@click.option(
    "--temp", "--temperature", "temperature", type=float, default=0.6, show_default=True,
    metavar="T", help="Temperature.",
)  # fmt: skip
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this. May be repeated.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@where_options
@json_option
def command(
    model: str,
    tasks_file: Path,
    out: Path | None,
    chains: int,
    rounds: int,
    history: Any,
    again: str | None,
    checker: str | None,
    max_tokens: int,
    temperature: float,
    stop: tuple[str, ...],
    seed: int,
    where: Where,
    as_json: bool,
) -> None:
    """Let MODEL answer each task of TASKS, then answer again and again.

    TASKS is as for 'capax scale sample'. The same command goes on where it was stopped;
    'capax scale plan DIR --mode sequential' says how many rounds pay.
    """
    from capax import SamplingParams
    from capax.endpoints import Ledger
    from capax.files.run_folder import new_run_path
    from capax.scaling.rounds import AGAIN, RoundsPlan, run_rounds
    from capax.scaling.run_directory import RunDirectory
    from capax.scaling.tasks import read_tasks

    tasks = read_tasks(tasks_file, checker)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=stop)
    plan = RoundsPlan(chains, rounds, params, history, AGAIN if again is None else again, seed)

    async def run(directory: RunDirectory) -> str:
        opened = where.open(model, parallel=plan.concurrency, ledger=Ledger())
        async with opened as endpoint:
            return await run_rounds(endpoint, tasks, directory, plan)

    settings = plan.settings(tasks, where.identity(model))
    path = out or new_run_path(Path("runs"), f"{tasks_file.stem}-rounds", settings)
    with RunDirectory(path, settings, where.facts(model, seed)) as directory:
        status = asyncio.run(run(directory))
        n_answers = len(directory.samples)
        report_what_is_there(path)
    if as_json:
        click.echo(json.dumps({"run": str(path), "status": status, "n_answers": n_answers}))
        return
    click.echo(f"{path}: {n_answers:,} answers of {len(tasks):,} tasks, {status}")
