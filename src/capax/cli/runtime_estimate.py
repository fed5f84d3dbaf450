"""`capax measure runtime estimate`: price a query from a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from capax.cli.options import json_option


@click.command("estimate")
@click.argument("profile_file", metavar="PROFILE", type=click.Path(path_type=Path))
@click.option("--name", metavar="MODEL", help="Which profile of a table of several.")
@click.option("--prompt", "p", required=True, type=click.IntRange(0, 10**9), metavar="N",
              help="Prompt tokens.")  # fmt: skip
@click.option("--output", "o", required=True, type=click.IntRange(0, 10**9), metavar="N",
              help="Output tokens.")  # fmt: skip
@click.option("--cached", type=click.IntRange(0), default=0, metavar="N",
              help="Prompt tokens that a prefix cache has.")  # fmt: skip
@click.option("--queries", type=click.IntRange(1, 10**12), default=1, metavar="N",
              help="So many such queries.")  # fmt: skip
@click.option("--devices", type=click.IntRange(1, 10**9), default=1, metavar="N",
              help="Devices that a query occupies.")  # fmt: skip
@click.option("--price", type=click.FloatRange(0), metavar="X", help="Price of a device's hour.")
@click.option("--watts", type=click.FloatRange(0), metavar="W", help="Power of a device.")
@click.option("--rule", type=click.Choice(["interpolate", "helm"]), default="interpolate",
              show_default=True, help="How g is read between its keys.")  # fmt: skip
@json_option
def command(
    profile_file: Path,
    name: str | None,
    p: int,
    o: int,
    cached: int,
    queries: int,
    devices: int,
    price: float | None,
    watts: float | None,
    rule: Any,
    as_json: bool,
) -> None:
    """Price a query from PROFILE, a file of 'fit' or a table of HELM."""
    from capax.cli.json_files import read_json
    from capax.measuring.runtime_profile import read_profile

    chosen, model = read_profile(read_json(profile_file), name)
    seconds = queries * model.seconds(p, o, cached=cached, rule=rule)
    result: dict[str, Any] = {"model": chosen, "seconds": seconds}
    result["device_seconds"] = seconds * devices
    if price is not None:
        result["cost"] = seconds * devices * price / 3600
    if watts is not None:
        result["joules"] = seconds * devices * watts
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for label, value in result.items():
        click.echo(f"{label:<14} {value if isinstance(value, str) else f'{value:.6f}'}")
