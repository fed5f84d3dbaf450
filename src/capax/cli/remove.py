"""`capax rm`: forget models and delete what was pulled."""

from __future__ import annotations

import click

from capax.cli.console import console


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
            console().note(f"forgot {name}; {record.path} is untouched")
        elif registry.path_of(record).exists():
            console().note(f"removed {name}; another name still uses its bytes")
        else:
            console().note(f"removed {name}, {format_size(record.nbytes)} freed")
