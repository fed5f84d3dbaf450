"""`capax scale swarm ask`: one question, many models, one answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.console import console
from capax.cli.options import json_option, machine_options
from capax.cli.swarm_nodes import open_nodes, read_nodes

if TYPE_CHECKING:
    from capax.cli.swarm_nodes import NodeLine
    from capax.scaling.swarm.consensus import SwarmResult
    from capax.scaling.swarm.registry import Registry


@click.command("ask")
@click.argument("nodes_file", metavar="NODES", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--registry", type=click.Path(path_type=Path), metavar="FILE",
    help="Judge by the reputations kept here, and keep this round.",
)  # fmt: skip
@click.option("--max-total-tokens", type=click.IntRange(1), metavar="N", help="Of all calls.")
@click.option("--max-calls", type=click.IntRange(1), metavar="N", help="Calls, all nodes together.")
@click.option("--seconds", type=click.FloatRange(0.001), metavar="S", help="Time to take.")
@click.option(
    "--judge-mode", type=click.Choice(["reason", "letters"]), default="reason", show_default=True,
    help="Judges write a reason and a letter, or the letters' probabilities count.",
)  # fmt: skip
@click.option(
    "--stop-at", type=click.FloatRange(0.5, 1), metavar="P",
    help="Ask one judge after another, and none more once the winner is so certain.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option("-c", "--ctx-size", type=click.IntRange(1), metavar="N", help="Context in tokens.")
@machine_options
@json_option
def command(
    nodes_file: Path,
    question: str,
    registry: Path | None,
    max_total_tokens: int | None,
    max_calls: int | None,
    seconds: float | None,
    judge_mode: Any,
    stop_at: float | None,
    seed: int,
    ctx_size: int | None,
    threads: int | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Ask QUESTION of every node in NODES; they compare the answers, and the strongest wins.

    NODES is a JSON array of {"id", "model", "base_url", "temperature", "max_tokens", "form"};
    without base_url a model of this machine. Without form it is asked as a chat; a form is {"ask",
    "judge", "first_better", "second_better", "kept", "read_answer"}, for models trained to judge.
    When tokens, calls or time are over, the answer is the best under the comparisons made so far.
    """
    from capax.endpoints import Ledger
    from capax.scaling.swarm.consensus import Budget, ask
    from capax.scaling.swarm.registry import Registry

    lines = read_nodes(nodes_file)
    known = Registry(registry) if registry is not None else None
    limits: dict[str, Any] = {"ctx_size": ctx_size, "threads": threads, "memory": memory}

    async def run() -> SwarmResult:
        async with open_nodes(lines, limits, Ledger()) as nodes:
            return await ask(
                question, nodes, budget=Budget(max_total_tokens, max_calls, seconds), seed=seed,
                weights=known.weights() if known else None, judge_mode=judge_mode,
                stop_at=stop_at,
            )  # fmt: skip

    got = asyncio.run(run())
    if known is not None:
        _keep(known, lines, question, got)
    if as_json:
        click.echo(json.dumps(asdict(got), indent=1).replace("NaN", "null"))
        return
    click.echo(got.answer)
    sure = "" if got.confidence is None else f", wins {got.confidence:.0%} of redrawn judges"
    console().note(
        f"{len(got.answers)} answers, {len(got.comparisons)} comparisons{sure}; {got.calls} calls, "
        f"{got.tokens:,} tokens{'' if got.is_complete else '; cut short'}"
    )


def _keep(known: Registry, lines: list[NodeLine], question: str, got: SwarmResult) -> None:
    """Keep a round, what it can be replayed from, and who agreed with the others."""
    from capax.scaling.swarm.agreement import agreement
    from capax.scaling.swarm.consensus import attempts
    from capax.scaling.swarm.rounds import stored

    trusted = known.weights()
    asked = {n.id: trusted[n.id] for n in lines if n.judges and trusted.get(n.id, 0.0) > 0}
    kept = attempts(len(got.answers), got.bad, asked)
    agreed = agreement(got.answers, kept, got.comparisons, asked)
    known.add_round(dict.fromkeys(agreed, (0, 0)), stored(question, got, asked), got.tokens, agreed)
