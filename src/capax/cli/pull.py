"""`capax pull`: fetch a model, or check one that was fetched."""

from __future__ import annotations

import click

from capax.cli.console import console


@click.command("pull")
@click.argument("name")
@click.option("--offline", is_flag=True, help="Fetch nothing; fail if NAME is not here yet.")
@click.option("--verify", is_flag=True, help="Only compare the bytes on disk with their digest.")
def command(name: str, offline: bool, verify: bool) -> None:
    """Fetch the model NAME and print where it is.

    NAME is a model of the catalogue (smollm2-135m, all-minilm-l6-v2), hf:owner/repo[:file], or
    the path of a model on this machine, which is registered without copying it.
    """
    from capax.files import pull as pulling
    from capax.files.registry import Registry

    registry = Registry()
    if verify:
        record = pulling.verify(name, registry=registry)
        kept = record.digest or "registered by reference, so no digest is kept"
        console().note(f"{name}: {record.nbytes:,} bytes, {kept}")
        click.echo(registry.path_of(record))
    else:
        click.echo(pulling.pull(name, registry=registry, offline=offline, report=console().note))
