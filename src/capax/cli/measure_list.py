"""`capax measure list`: what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.options import json_option
from capax.cli.record_view import figure_text, listed, plain_text, records_option

if TYPE_CHECKING:
    from capax.measuring.records import Record


@click.command("list")
@records_option
@click.option("--kind", metavar="KIND", help="Only of this kind, such as perplexity.")
@click.option("--model", metavar="TEXT", help="Only models with TEXT in name or digest.")
@click.option("--data", "data", metavar="TEXT", help="Only data with TEXT in name or digest.")
@click.option("--method", metavar="NAME=VALUE", multiple=True,
              help="Only with this method, such as kv=int8 or weights=Q4_1.")  # fmt: skip
@click.option("--figure", metavar="NAME", help="Only with this figure, and show it.")
@json_option
def command(
    records: Path | None,
    kind: str | None,
    model: str | None,
    data: str | None,
    method: tuple[str, ...],
    figure: str | None,
    as_json: bool,
) -> None:
    """List records, oldest first, with their first figure."""
    import msgspec

    rows = [
        found
        for found in listed(records)
        if _matches(found.record, kind, model, data, method, figure)
    ]
    if as_json:
        document = [
            {"id": found.record.id, "file": str(found.path), **msgspec.to_builtins(found.record)}
            for found in rows
        ]
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"{'id':<8}  {'time':<20}  {'kind':<15}  {'model':<36}  {'data':<16}  figure")
    for found in rows:
        record = found.record
        method_text = ",".join(
            str(record.method[k]) for k in ("weights", "kv") if k in record.method
        )
        shown = record.figure(figure) if figure else next(iter(record.figures), None)
        text = f"{shown.name} {figure_text(shown)}" if shown else ""
        name = record.model.name + (f" [{method_text}]" if method_text else "")
        data_name = plain_text(record.data.name if record.data else "-", 16)
        click.echo(
            f"{record.id}  {plain_text(record.time[:19], 19):<20}  "
            f"{plain_text(record.kind, 15):<15}  "
            f"{plain_text(name, 36):<36}  "
            f"{data_name:<16}  {plain_text(text, 60)}"
        )


def _matches(
    record: Record,
    kind: str | None,
    model: str | None,
    data: str | None,
    method: tuple[str, ...],
    figure: str | None,
) -> bool:
    from capax.errors import ConfigError

    for pair in method:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--method is {pair!r:.60}; write NAME=VALUE, such as kv=int8")
        if str(record.method.get(name)) != value:
            return False
    if kind is not None and record.kind != kind:
        return False
    if model is not None and model not in record.model.name and model not in record.model.digest:
        return False
    if data is not None and not (
        record.data and (data in record.data.name or data in record.data.digest)
    ):
        return False
    return figure is None or record.figure(figure) is not None
