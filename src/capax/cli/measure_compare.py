"""`capax measure compare`: comparable records side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option
from capax.cli.record_view import chosen, plain_text, records_option
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.measuring.compare import Comparison


@click.command("compare")
@click.argument("wanted", metavar="RECORD RECORD...", nargs=-1, required=True)
@records_option
@click.option("--anyway", is_flag=True, help="Show them though they are not comparable.")
@json_option
def command(wanted: tuple[str, ...], records: Path | None, anyway: bool, as_json: bool) -> None:
    """Compare records: ids, files or run directories. The first one is the baseline.

    A run of several strategies, methods or encodings counts as so many records. Records are
    comparable if kind, data, settings and seed are the same; otherwise the keys that differ are
    listed and the exit code is 1. Times need the same machine as well.
    """
    from capax.measuring.compare import compare

    picked = chosen(records, wanted)
    if len(picked) < 2:
        raise ConfigError("a comparison needs two records or more")
    result = compare(picked)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _show(result, anyway)
    if result.obstacles and not anyway:
        keys = ", ".join(row.key for row in result.obstacles)
        raise ConfigError(
            f"these records are not comparable, they differ in {plain_text(keys)}; "
            "--anyway shows them side by side"
        )


def _show(result: Comparison, anyway: bool) -> None:
    if result.obstacles:
        click.echo("not comparable:")
        _keys(result.obstacles)
        if not anyway:
            return
    if result.differs:
        click.echo("differs:")
        _keys(result.differs)
    width = 22
    click.echo("")
    click.echo(f"{'':<26} " + " ".join(f"{id_:>{width}}" for id_ in result.ids))
    for row in result.rows:
        cells = [_cell(value, ratio) for value, ratio in zip(row.values, row.ratios, strict=True)]
        line = " ".join(f"{cell:>{width}}" for cell in cells)
        click.echo(f"{plain_text(row.name, 26):<26} {line}  {plain_text(row.note)}".rstrip())


def _keys(rows: Any) -> None:
    for row in rows:
        values = " | ".join(plain_text(value, 64) for value in row.values)
        click.echo(f"  {plain_text(row.key, 40):<24} {values}")


def _cell(value: float | None, ratio: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" + ("" if ratio is None else f" ({ratio:.3f} x)")
