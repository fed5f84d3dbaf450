"""`capax scale swarm calibrate`: rounds on gold questions, on which nodes earn what they weigh."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.asked import progress_of
from capax.cli.swarm_nodes import judge_mode_option, nodes_options, open_nodes, registry_option
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.scaling.swarm.gold import GoldRound
    from capax.scaling.swarm.registry import Registry


@click.command("calibrate")
@click.argument("nodes_file", metavar="NODES", type=click.Path(path_type=Path))
@click.argument("gold", metavar="GOLD", type=click.Path(path_type=Path))
@registry_option
@click.option(
    "--rounds", type=click.IntRange(1), default=20, show_default=True, metavar="N",
    help="Gold rounds to play.",
)  # fmt: skip
@judge_mode_option
@nodes_options
def command(
    nodes_file: Path,
    gold: Path,
    registry: Path,
    rounds: int,
    judge_mode: Any,
    seed: int,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    """Play rounds on the questions of GOLD, whose better answer is known.

    GOLD is JSONL: {"question", "better", "worse", "checker"}. The known answers stand among those
    of the nodes; admitted judges earn by comparisons of a right with a wrong one, answerers by
    answers that the checker finds right. Each round is kept as it is played.
    """
    from capax.endpoints import Ledger
    from capax.scaling.swarm.admission import read_challenges
    from capax.scaling.swarm.gold import challenge_for, gold_round
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.swarm.registry import Registry

    lines, challenges = read_nodes(nodes_file), read_challenges(gold)
    known = Registry(registry)
    judges = admitted(known, [line.id for line in lines if line.judges])
    progress = progress_of("rounds")

    async def run() -> None:
        async with open_nodes(lines, limits, Ledger()) as nodes:
            for number in range(rounds):
                challenge = challenge_for(challenges, seed, known.n_rounds)
                played = await gold_round(
                    challenge, nodes, judges, seed=seed + known.n_rounds, judge_mode=judge_mode
                )
                keep_gold(known, challenge.question, played, judges)
                if progress:
                    progress(number + 1, rounds)

    asyncio.run(run())
    weights, standings = known.weights(), known.standings(line.id for line in lines)
    found = [
        {
            "node": line.id, "weight": round(weights.get(line.id, 0.0), 4),
            "standing": round(standings[line.id], 4),
        }
        for line in lines
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found:
        click.echo(f"{row['node']}: weight {row['weight']:.3f}, standing {row['standing']:.3f}")


def admitted(known: Registry, judges: list[str]) -> list[str]:
    """Return the judges that are admitted. Raises ConfigError if none is."""
    records = known.records()
    found = [name for name in judges if name in records and records[name].is_admitted]
    if not found:
        raise ConfigError(
            f"no judge is admitted in {known.path}; run 'capax scale swarm admit' first"
        )
    return found


def keep_gold(known: Registry, question: str, played: GoldRound, judges: list[str]) -> None:
    """Keep a gold round and what it can be replayed from."""
    from capax.scaling.swarm.rounds import stored

    result, weights = played.result, dict.fromkeys(judges, 1.0)
    known.add_round(
        played.judged, stored(question, result, weights), result.tokens, answered=played.answered
    )
