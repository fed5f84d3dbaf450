"""`capax scale swarm bench`: what consensus is worth beside votes on the same answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from capax.cli.asked import progress_of
from capax.cli.swarm_nodes import nodes_options, open_nodes
from capax.errors import ConfigError


@click.command("bench")
@click.argument("nodes_file", metavar="NODES", type=click.Path(path_type=Path))
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "--gold", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Pairs with a known better answer, as for 'admit': judges earn their weights on them.",
)  # fmt: skip
@click.option("--checker", metavar="NAME", help="For lines of TASKS that name none.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N tasks.")
@nodes_options
def command(
    nodes_file: Path,
    tasks_file: Path,
    gold: Path,
    checker: str | None,
    limit: int | None,
    seed: int,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    """Compare consensus with votes on the answers that NODES give to TASKS.

    A vote over further samples spends as many tokens as the consensus did. Intervals are 95 %, over
    tasks; differences are paired.
    """
    from capax.endpoints import Ledger
    from capax.scaling.swarm.admission import read_challenges
    from capax.scaling.swarm.bench import Question, Row, bench, calibrate, gain, summarize
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.swarm.reputation import weights
    from capax.scaling.tasks import Task, read_tasks

    lines = read_nodes(nodes_file)
    challenges = read_challenges(gold)

    def question(task: Task) -> Question:
        if not isinstance(task.prompt, str):
            raise ConfigError(f"task {task.id!r:.60} is a conversation; a swarm needs a question")
        return Question(task.prompt, lambda text: task.checker.check(text, task.reference))

    questions = [question(task) for task in read_tasks(tasks_file, checker, limit)]

    async def run() -> tuple[list[Row], dict[str, float]]:
        async with open_nodes(lines, limits, Ledger()) as nodes:
            records = await calibrate(nodes, challenges, seed)
            rows = await bench(
                nodes, questions, records, seed=seed, on_row=progress_of("questions")
            )
            return rows, weights(records)

    rows, trusted = asyncio.run(run())
    found = summarize(rows, seed)
    gains = {
        other: gain(rows, "reputation", other, seed)
        for other in ("vote", "vote, same tokens", "equal weights")
    }
    if as_json:
        shares = {name: asdict(share) for name, share in found.items()}
        click.echo(json.dumps({"ways": shares, "gains": gains, "weights": trusted}, indent=1))
        return
    click.echo(f"{'':<20} {'right':>7} {'95 %':>17} {'tokens':>8}")
    for name, share in found.items():
        click.echo(
            f"{name:<20} {share.accuracy:>7.1%} {share.low:>8.1%}-{share.high:<8.1%} "
            f"{share.tokens:>8,.0f}"
        )
    for other, (mean, low, high) in gains.items():
        click.echo(f"reputation over {other}: {mean:+.1%} ({low:+.1%} to {high:+.1%})")
