"""`capax measure decompress`: restore a file that `capax measure compress` wrote."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.compress import check_output, load, progress, read_bytes, write_whole
from capax.cli.options import machine_options


@click.command("decompress")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-m", "--model", required=True, metavar="MODEL", help="The model it was made with.")
@click.option(
    "-o", "--output", "output", required=True, type=click.Path(path_type=Path), metavar="OUT",
    help="File to write.",
)  # fmt: skip
@machine_options
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def command(
    file: Path, model: str, output: Path, threads: int | None, memory: int | None, force: bool
) -> None:
    """Restore to OUT, bit for bit, the file that 'capax measure compress' made FILE of.

    The model must be the same; a damaged file and another model are refused.
    """
    from capax.measuring.compression import decompress, read_header

    check_output(output, file, force)
    content = read_bytes(file)
    header, _ = read_header(content)
    window = max(header.window, 64)
    llm = load(model, window, threads=threads, memory=memory, kv=header.kv_type or None)
    data = decompress(content, llm, progress=progress("restored"))
    write_whole(output, data)
    click.echo(f"{output}: {len(data):,} bytes")
