"""`capax embed`: turn texts into vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from capax.cli.options import machine_options, model_argument


@click.command("embed")
@model_argument
@click.argument("texts", nargs=-1)
@click.option("--truncate", type=click.IntRange(1), metavar="N", help="Cut texts to N tokens.")
@machine_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a NumPy file, float32 [texts, dimensions], in place of JSON lines.",
)
def command(
    model: str,
    texts: tuple[str, ...],
    truncate: int | None,
    threads: int | None,
    memory: int | None,
    output: Path | None,
) -> None:
    """Print the embedding of each of TEXTS, or of each line of standard input.

    MODEL is an encoder such as all-minilm-l6-v2, or a model that writes: then the mean of its
    final hidden states. One JSON object per text: the text and its numbers.
    """
    import numpy as np

    from capax import LLM, Embedder
    from capax.files.model_file import open_model
    from capax.files.registry import resolve

    is_encoder = open_model(resolve(model)).config.encoder is not None
    lines = texts or tuple(sys.stdin.read().splitlines())
    embedder = (
        Embedder(model, threads=threads, memory=memory)
        if is_encoder
        else LLM(model, threads=threads, memory=memory)
    )
    vectors = embedder.embed(lines, truncate=truncate)
    if output is not None:
        with output.open("wb") as file:
            np.save(file, vectors)
        return
    for text, vector in zip(lines, vectors, strict=True):
        click.echo(json.dumps({"text": text, "embedding": vector.tolist()}, ensure_ascii=False))
