"""`capax scale tasks list`: the families of generated tasks."""

from __future__ import annotations

import json

import click

from capax.cli.options import json_option


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """List the families of tasks, with the levels and the size of their default sets."""
    from capax.scaling.complex import FAMILIES

    rows = [
        {
            "family": name,
            "levels": list(family.default_counts),
            "instances": sum(family.default_counts.values()),
        }
        for name, family in FAMILIES.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for name, family in FAMILIES.items():
        levels = ",".join(map(str, family.default_counts))
        click.echo(f"{name:<11} {sum(family.default_counts.values()):>6,}  levels {levels}")
