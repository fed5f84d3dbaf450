"""`capax scale swarm admit`: nodes compare pairs whose better answer is known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from capax.cli.swarm_nodes import nodes_options, open_nodes, registry_option


@click.command("admit")
@click.argument("nodes_file", metavar="NODES", type=click.Path(path_type=Path))
@click.argument("challenges_file", metavar="CHALLENGES", type=click.Path(path_type=Path))
@registry_option
@nodes_options
def command(
    nodes_file: Path,
    challenges_file: Path,
    registry: Path,
    seed: int,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    """Examine every node that is not admitted yet: 17 of 20 challenges must be judged rightly.

    CHALLENGES is JSONL: {"question", "better", "worse"}, at least 20 lines. Each attempt is kept
    with what it cost; three are possible in 24 hours.
    """
    from capax.endpoints import Ledger
    from capax.scaling.swarm.admission import examine, read_challenges
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.swarm.registry import Registry

    lines, challenges = read_nodes(nodes_file), read_challenges(challenges_file)
    known = Registry(registry)
    records = known.records()
    waiting = [n for n in lines if not (n.id in records and records[n.id].is_admitted)]
    for node in waiting:
        known.check_admission(node.id)
    found: list[dict[str, Any]] = []

    async def run() -> None:
        async with open_nodes(waiting, limits, Ledger()) as nodes:
            for node in nodes:
                right, asked, tokens = await examine(node, challenges, seed)
                passed = known.add_admission(node.id, right, asked, tokens)
                found.append({
                    "node": node.id, "right": right, "asked": asked, "tokens": tokens,
                    "admitted": passed,
                })  # fmt: skip

    if waiting:
        asyncio.run(run())
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found:
        verdict = "admitted" if row["admitted"] else "not admitted"
        click.echo(
            f"{row['node']}: {row['right']} of {row['asked']} right, {row['tokens']:,} tokens, "
            f"{verdict}"
        )
