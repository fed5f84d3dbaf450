"""`capax measure show`: one record in full."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.options import json_option
from capax.cli.record_view import chosen, figure_text, plain_text, records_option


@click.command("show")
@click.argument("record", metavar="RECORD")
@records_option
@json_option
def command(record: str, records: Path | None, as_json: bool) -> None:
    """Show RECORD: the beginning of an id, 'last', a file, or a run directory."""
    import msgspec

    from capax.measuring.records import subject

    (one,) = chosen(records, (record,))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(one), indent=2).decode())
        return
    rows: list[tuple[str, object]] = [("id", one.id), ("kind", one.kind), ("time", one.time)]
    if one.data is not None:
        items = "" if one.data.n_items is None else f", {one.data.n_items:,} items"
        rows.append(("data", f"{one.data.name} (sha256 {one.data.digest[:16]}{items})"))
    rows += [(f"settings.{name}", value) for name, value in one.settings.items()]
    rows += [("seed", one.seed), *subject(one).items()]
    for name, value in rows:
        if value not in (None, ""):
            click.echo(f"{plain_text(name, 40):<26} {plain_text(value)}")
    click.echo("")
    for figure in one.figures:
        click.echo(f"{plain_text(figure.name, 60):<26} {figure_text(figure)}")
