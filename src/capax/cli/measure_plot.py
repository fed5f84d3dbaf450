"""`capax measure plot`: a figure of several records as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.record_view import chosen, listed, records_option
from capax.errors import ConfigError


@click.command("plot")
@click.argument("wanted", metavar="[RECORD]...", nargs=-1)
@records_option
@click.option("--figure", metavar="NAME", required=True, help="Figure to draw, such as perplexity.")
@click.option("--against", metavar="NAME",
              help="Draw it against another figure, weights_nbytes or n_params.")  # fmt: skip
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path),
              metavar="FILE", help="Picture to write, .png or .svg.")  # fmt: skip
def command(
    wanted: tuple[str, ...], records: Path | None, figure: str, against: str | None, output: Path
) -> None:
    """Draw one figure of RECORDs, or of all that have it, with intervals.

    Each group of comparable records gets a colour of its own.
    """
    from capax.measuring.record_picture import draw

    picked = chosen(records, wanted) if wanted else [found.record for found in listed(records)]
    usable = [r for r in picked if (f := r.figure(figure)) is not None and f.value is not None]
    if not usable:
        names = sorted({f.name for record in picked for f in record.figures})
        raise ConfigError(
            f"no record has a figure {figure!r:.60}; there are {', '.join(names[:20]) or 'none'}"
        )
    draw(usable, figure, against, output)
    click.echo(f"{output}: {figure} of {len(usable)} records")
