"""How records appear in a terminal: the flags that choose them, and their lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from capax.cli.answer import printable
from capax.cli.console import console

if TYPE_CHECKING:
    from capax.measuring.records import Figure, Found, Record

F = TypeVar("F", bound=Callable[..., Any])


def records_option(function: F) -> F:
    """Add --records."""
    return click.option(
        "--records", "records", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Folder of records, with its sub-folders. Default: capax's data directory.",
    )(function)  # fmt: skip


def chosen(records: Path | None, wanted: tuple[str, ...]) -> list[Record]:
    """Return the records that ids, files or run directories name, in that order."""
    return [record for _, found in chosen_by_name(records, wanted) for record in found]


def chosen_by_name(records: Path | None, wanted: tuple[str, ...]) -> list[tuple[str, list[Record]]]:
    """Return the records of each id, file or run directory; a run may have several."""
    from capax.cli.run_records import is_run, records_of_run
    from capax.measuring.records import find, read_record

    picked: list[tuple[str, list[Record]]] = []
    listing: list[Found] | None = None
    for name in wanted:
        path = Path(name)
        if is_run(path):
            picked.append((name, records_of_run(path)))
        elif path.suffix == ".json" and path.exists():
            picked.append((name, [read_record(path)]))
        else:
            listing = listed(records) if listing is None else listing
            picked.append((name, [find(listing, name).record]))
    return picked


def listed(records: Path | None) -> list[Found]:
    """Return the records of a folder; damaged ones are named on standard error."""
    from capax.cli.recording import folder_to_read
    from capax.measuring.records import list_records

    listing = list_records(folder_to_read(records))
    for reason in listing.damaged:
        console().note(f"left out: {plain_text(reason)}")
    return listing.found


def plain_text(value: object, width: int = 200) -> str:
    """Return a value of a record on one line of a terminal, whatever it holds."""
    text = printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= width else text[: width - 3] + "..."


def figure_text(figure: Figure) -> str:
    """Return a figure's value with its interval and unit."""
    if figure.value is None:
        return f"none ({plain_text(figure.note)})" if figure.note else "none"
    text = f"{figure.value:.6g}"
    if figure.interval is not None:
        text += f" ({figure.interval[0]:.5g} to {figure.interval[1]:.5g})"
    if figure.unit:
        text += f" {plain_text(figure.unit)}"
    if figure.peer is not None:
        text += f"; {plain_text(figure.peer.name)}: {figure.peer.value:.6g}"
    return text
