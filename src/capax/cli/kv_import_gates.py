"""`capax kv import-gates`: published retention gates become those of a model."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.options import model_argument


@click.command("import-gates")
@click.argument("source", type=click.Path(path_type=Path))
@model_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE")
def command(source: Path, model: str, output: Path) -> None:
    """Write the published gates SOURCE as gates of MODEL.

    SOURCE is a safetensors file with tensors named self_attn.retention_gate.linear1.weight and so
    on. Published files do not say which weights they belong to: make sure that MODEL is it.
    """
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.kv.retention_gates import import_gates

    import_gates(source, open_model(resolve(model)), output)
    console().note(f"{output}: use it with --kv trim:gates={output},memory=128")
