"""`capax measure leaderboard`: a page of all records of a folder."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.record_view import listed


@click.command("leaderboard")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path),
              metavar="PAGE", help="HTML file to write.")  # fmt: skip
@click.option("--title", default="Measurements", show_default=True, help="Of the page.")
def command(folder: Path, output: Path, title: str) -> None:
    """Write one HTML page with the records of DIR, comparable ones in one table, best first.

    The page needs nothing else: no script, no network.
    """
    from capax.cli.compress import write_whole
    from capax.measuring.leaderboard import page

    records = [found.record for found in listed(folder)]
    write_whole(output, page(records, title).encode())
    click.echo(f"{output}: {len(records)} records")
