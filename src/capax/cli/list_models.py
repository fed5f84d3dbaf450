"""`capax list`: the models in the local registry."""

from __future__ import annotations

import json

import click

from capax.cli.console import console
from capax.cli.options import json_option


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """List the models that were pulled or registered on this machine."""
    from capax.files.registry import Registry
    from capax.planning.sizes import format_size

    registry = Registry()
    records = registry.list()
    paths = {record.name: registry.path_of(record) for record in records}
    if as_json:
        models = [
            {
                "name": record.name,
                "source": record.source,
                "nbytes": record.nbytes,
                "sha256": record.digest,
                "path": str(paths[record.name]),
                "exists": paths[record.name].exists(),
            }
            for record in records
        ]
        click.echo(json.dumps({"models": models}, indent=2))
        return
    if not records:
        console().note("no models yet: run 'capax pull smollm2-135m'")
        return
    rows = [("NAME", "SIZE", "SOURCE")]
    for record in records:
        gone = "" if paths[record.name].exists() else " (gone)"
        rows.append((record.name, format_size(record.nbytes), record.source + gone))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, size, source in rows:
        click.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {source}")
