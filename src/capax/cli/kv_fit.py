"""`capax kv fit`: codebooks of a product-quantised KV cache, fitted to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.console import console
from capax.cli.options import json_option, model_argument

if TYPE_CHECKING:
    from capax.kv.codebook import Codebook, Scope


@click.command("fit")
@model_argument
@click.option(
    "-f",
    "--text",
    "--file",
    "text",
    metavar="FILE",
    required=True,
    help="UTF-8 text to fit to; - is stdin. Measure on another one.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="BOOK",
    required=True,
    help="Safetensors file to write.",
)
@click.option(
    "--subspaces",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="M",
    help="Sub-vectors that a head vector is cut into.",
)
@click.option(
    "--bits",
    type=click.IntRange(1, 12),
    default=8,
    show_default=True,
    metavar="N",
    help="Bits of a code: 2^N centroids per sub-space.",
)
@click.option(
    "--v-subspaces", type=click.IntRange(1), metavar="M", help="Of values, if different from keys."
)
@click.option(
    "--v-bits", type=click.IntRange(1, 12), metavar="N", help="Of values, if different from keys."
)
@click.option(
    "--scope",
    type=click.Choice(["per_layer", "per_head", "merged"]),
    default="per_layer",
    show_default=True,
    help="What one codebook serves; merged, the paper's, is the whole model.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=22_528,
    show_default=True,
    metavar="N",
    help="Tokens of the text to use, at most.",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(1),
    default=2_048,
    show_default=True,
    metavar="N",
    help="Tokens that are read in one go.",
)
@click.option(
    "--iterations",
    type=click.IntRange(1, 10_000),
    default=25,
    show_default=True,
    metavar="N",
    help="Iterations of k-means, at most.",
)
@click.option(
    "--vectors",
    type=click.IntRange(1),
    default=1 << 16,
    show_default=True,
    metavar="N",
    help="Head vectors that a codebook is fitted to, at most.",
)
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True, help="Of the start.")
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads.")
@json_option
def command(
    model: str,
    text: str,
    output: Path,
    subspaces: int,
    bits: int,
    v_subspaces: int | None,
    v_bits: int | None,
    scope: Scope,
    tokens: int,
    context: int,
    iterations: int,
    vectors: int,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Fit codebooks for the cache method 'million' to MODEL and write them to BOOK.

    The model reads the text in windows of --context tokens, and k-means runs over the keys
    and values that it makes. The same text, options and model give the same file on every
    machine whose keys and values have the same bits. Then:
    capax run MODEL --kv million:codebook=BOOK
    """
    from capax.cli.perplexity import read_text
    from capax.engine.calibration import keys_and_values
    from capax.files.digest import weights_digest
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.files.tokenizer import load_tokenizer
    from capax.kv.codebook import Fit, cut, text_digest
    from capax.measuring.perplexity import windows_of
    from capax.planning.machine import read_machine, usable_threads
    from capax.settings import apply_isa

    apply_isa()
    content = read_text(text)
    file = open_model(resolve(model))
    fit = Fit(
        subspaces, v_subspaces or subspaces, bits, v_bits or bits, scope, iterations, seed, vectors
    )
    for n, b in ((fit.k_subspaces, fit.k_bits), (fit.v_subspaces, fit.v_bits)):
        cut(file.config.head_dim, n, b)  # refuse before the model reads
    tokenizer = load_tokenizer(file)
    context = min(context, tokens, file.config.context_len)
    windows = windows_of(content, tokenizer, context, max(1, tokens // context))
    n_threads = threads or usable_threads(read_machine()).n
    console().note(f"reading {len(windows)} windows of {context} tokens")
    k, v = keys_and_values(file, windows, n_threads)
    done = 0

    def progress() -> None:
        nonlocal done
        done += 1
        if console().shows_progress():
            click.echo(f"\rcodebooks: {done}", err=True, nl=False)

    book = fit.run(
        k,
        v,
        model=weights_digest(file).hex(),
        text=text_digest(content),
        n_threads=n_threads,
        progress=progress,
    )
    if console().shows_progress():
        click.echo(err=True)
    book.save(output)
    if as_json:
        click.echo(json.dumps(_summary(book, output), indent=2))
        return
    bits_of = " and ".join(
        f"{side.bits_per_value:g} bits of a {name}"
        for name, side in (("key", book.k_shape), ("value", book.v_shape))
    )
    click.echo(
        f"{output}: {len(book.k) + len(book.v)} codebooks, {book.nbytes:,} bytes, "
        f"{bits_of} number, fitted to {int(book.facts['n_vectors']):,} vectors each"
    )


def _summary(book: Codebook, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "model": book.model,
        "scope": book.scope,
        "k": book.k_shape._asdict(),
        "v": book.v_shape._asdict(),
        "codebooks": len(book.k) + len(book.v),
        "bytes": book.nbytes,
        **book.facts,
    }
