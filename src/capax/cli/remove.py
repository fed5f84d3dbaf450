"""`capax rm`: forget models and delete what was pulled."""

from __future__ import annotations

import click


@click.command("rm")
@click.argument("names", nargs=-1, required=True)
def command(names: tuple[str, ...]) -> None:
    """Remove the models NAMES from the local registry.

    The bytes of a pulled model are deleted. A model that was registered by its path only
    loses its name.
    """
    from capax.files.registry import Registry
    from capax.planning.sizes import format_size

    registry = Registry()
    for name in names:
        record = registry.remove(name)
        if record.digest is None:
            click.echo(f"forgot {name}; {record.path} is untouched", err=True)
        elif registry.path_of(record).exists():
            click.echo(f"removed {name}; another name still uses its bytes", err=True)
        else:
            click.echo(f"removed {name}, {format_size(record.nbytes)} freed", err=True)
