"""`capax scale swarm show`: check a registry, and show its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from capax.cli.options import json_option
from capax.errors import ConfigError


@click.command("show")
@click.argument("registry", type=click.Path(path_type=Path))
@json_option
def command(registry: Path, as_json: bool) -> None:
    """Check every entry of REGISTRY and show each judge's record and weight.

    Ends with an error naming the first entry that was altered, if one was, and fits every stored
    round anew: it must give the strengths that it holds, bit for bit.
    """
    from capax.scaling.swarm.registry import Registry
    from capax.scaling.swarm.rounds import is_replayable, replay
    from capax.scaling.swarm.stakes import Account

    if not registry.exists():
        raise ConfigError(f"{registry} does not exist; 'capax scale swarm admit' begins one")
    known = Registry(registry)
    n_entries = known.audit()
    n_replayed = 0
    for entry in known.entries():
        if is_replayable(entry):
            replay(entry["verdicts"])
            n_replayed += 1
    weights, accounts, agreed = known.weights(), known.accounts(), known.agreement()
    standings, halves = known.standings(known.records()), known.halves()
    rows: list[dict[str, Any]] = [
        {
            "node": name, "admitted": r.is_admitted, "rounds": r.rounds,
            "reputation": round(r.reputation, 4), "weight": round(weights[name], 4),
            "agrees": agreed.get(name, (0, 0))[0], "differs": agreed.get(name, (0, 0))[1],
            "deposits": accounts.get(name, Account()).balance,
            "standing": round(standings[name], 4),
            "upper_half": halves.get(name, (0, 0))[0], "lower_half": halves.get(name, (0, 0))[1],
        }
        for name, r in sorted(known.records().items())
    ]  # fmt: skip
    if as_json:
        click.echo(
            json.dumps({"entries": n_entries, "replayed": n_replayed, "nodes": rows}, indent=1)
        )
        return
    click.echo(f"{n_entries:,} entries, none altered; {n_replayed:,} rounds replayed")
    for row in rows:
        state = "admitted" if row["admitted"] else "not admitted"
        click.echo(
            f"{row['node']:<24} {state:<13} {row['rounds']:>6,} rounds, reputation "
            f"{row['reputation']:.3f}, weight {row['weight']:.3f}, agrees {row['agrees']:,} of "
            f"{row['agrees'] + row['differs']:,}, {row['deposits']} deposits; answers: standing "
            f"{row['standing']:.3f}, upper half {row['upper_half']:,} of "
            f"{row['upper_half'] + row['lower_half']:,}"
        )
