"""`capax scale swarm show`: check a registry, and show its records."""

from __future__ import annotations

import json
from pathlib import Path

import click

from capax.cli.options import json_option
from capax.errors import ConfigError


@click.command("show")
@click.argument("registry", type=click.Path(path_type=Path))
@json_option
def command(registry: Path, as_json: bool) -> None:
    """Check every entry of REGISTRY and show each judge's record and weight.

    Ends with an error naming the first entry that was altered, if one was.
    """
    from capax.scaling.swarm.registry import Registry

    if not registry.exists():
        raise ConfigError(f"{registry} does not exist; 'capax scale swarm admit' begins one")
    known = Registry(registry)
    n_entries = known.audit()
    weights = known.weights()
    rows = [
        {
            "node": name, "admitted": r.is_admitted, "rounds": r.rounds,
            "reputation": round(r.reputation, 4), "weight": round(weights[name], 4),
        }
        for name, r in sorted(known.records().items())
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps({"entries": n_entries, "nodes": rows}, indent=1))
        return
    click.echo(f"{n_entries:,} entries, none altered")
    for row in rows:
        state = "admitted" if row["admitted"] else "not admitted"
        click.echo(
            f"{row['node']:<24} {state:<13} {row['rounds']:>6,} rounds, reputation "
            f"{row['reputation']:.3f}, weight {row['weight']:.3f}"
        )
