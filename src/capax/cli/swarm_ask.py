"""`capax scale swarm ask`: one question, many models, one answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.console import console
from capax.cli.swarm_calibrate import admitted, keep_gold
from capax.cli.swarm_nodes import judge_mode_option, nodes_options, open_nodes
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.scaling.swarm.consensus import SwarmResult
    from capax.scaling.swarm.nodes_file import NodeLine
    from capax.scaling.swarm.registry import Registry


@click.command("ask")
@click.argument("nodes_file", metavar="NODES", type=click.Path(path_type=Path))
@click.argument("question")
@click.option(
    "--registry", type=click.Path(path_type=Path), metavar="FILE",
    help="Judge by the reputations kept here, and keep this round.",
)  # fmt: skip
@click.option(
    "--gold", type=click.Path(path_type=Path), metavar="FILE",
    help="With --registry: mix in rounds on these questions, as for 'calibrate'.",
)  # fmt: skip
@click.option(
    "--gold-rate", type=click.FloatRange(0, 1), default=0.05, show_default=True, metavar="P",
    help="How often a gold round is played as well.",
)  # fmt: skip
@click.option(
    "--max-answerers", type=click.IntRange(1), metavar="N",
    help="Only the N nodes of the highest standing answer.",
)  # fmt: skip
@click.option("--max-total-tokens", type=click.IntRange(1), metavar="N", help="Of all calls.")
@click.option("--max-calls", type=click.IntRange(1), metavar="N", help="Calls, all nodes together.")
@click.option("--seconds", type=click.FloatRange(0.001), metavar="S", help="Time to take.")
@judge_mode_option
@click.option(
    "--stop-at", type=click.FloatRange(0.5, 1), metavar="P",
    help="Ask one judge after another, and none more once the winner is so certain.",
)  # fmt: skip
@nodes_options
def command(
    nodes_file: Path,
    question: str,
    registry: Path | None,
    gold: Path | None,
    gold_rate: float,
    max_answerers: int | None,
    max_total_tokens: int | None,
    max_calls: int | None,
    seconds: float | None,
    judge_mode: Any,
    stop_at: float | None,
    seed: int,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    """Ask QUESTION of every node in NODES; they compare the answers, and the strongest wins.

    NODES is a JSON array of {"id", "model", "base_url", "temperature", "max_tokens", "form"};
    without base_url a model of this machine. Without form it is asked as a chat; a form is {"ask",
    "judge", "first_better", "second_better", "kept", "read_answer", "letters", "thought_tokens"},
    for models trained to judge.
    When tokens, calls or time are over, the answer is the best under the comparisons made so far.
    """
    from capax.endpoints import Ledger
    from capax.scaling.swarm.admission import read_challenges
    from capax.scaling.swarm.consensus import Budget, ask
    from capax.scaling.swarm.gold import challenge_for, gold_due, gold_round
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.swarm.registry import Registry

    if gold is not None and registry is None:
        raise ConfigError("--gold earns reputations, which need a place: give --registry FILE")
    lines = read_nodes(nodes_file)
    known = Registry(registry) if registry is not None else None
    challenges = [] if gold is None else read_challenges(gold)

    async def run() -> SwarmResult:
        async with open_nodes(lines, limits, Ledger()) as nodes:
            if known and challenges and gold_due(gold_rate, seed, known.n_rounds):
                judges = admitted(known, [line.id for line in lines if line.judges])
                challenge = challenge_for(challenges, seed, known.n_rounds)
                played = await gold_round(
                    challenge, nodes, judges, seed=seed + known.n_rounds, judge_mode=judge_mode
                )
                keep_gold(known, challenge.question, played, judges)
                console().note(f"a gold round took {played.result.tokens:,} tokens")
            return await ask(
                question, nodes, budget=Budget(max_total_tokens, max_calls, seconds), seed=seed,
                weights=known.weights() if known else None, judge_mode=judge_mode,
                stop_at=stop_at, max_answerers=max_answerers,
                standing=known.standings(line.id for line in lines) if known else None,
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
    from capax.scaling.swarm.gold import standing_in
    from capax.scaling.swarm.rounds import stored

    trusted = known.weights()
    asked = {n.id: trusted[n.id] for n in lines if n.judges and trusted.get(n.id, 0.0) > 0}
    kept = attempts(len(got.answers), got.bad, asked)
    agreed = agreement(got.answers, kept, got.comparisons, asked)
    known.add_round(
        dict.fromkeys(agreed, (0, 0)), stored(question, got, asked), got.tokens, agreed,
        halves=standing_in(got),
    )  # fmt: skip
