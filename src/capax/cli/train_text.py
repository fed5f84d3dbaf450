"""`capax train text`: a small model of the user's own text."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.training import encoding_option, needs_torch, reporter, run_options


@click.command("text")
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)  # fmt: skip
@run_options(steps=3000, unit="Steps in which the text is read once.", threads=1)
@click.option(
    "--vocab", "n_vocab", type=click.IntRange(256, 65536), default=4096, show_default=True,
    metavar="N", help="Tokens of the BPE that is trained on the text; 256: bytes.",
)  # fmt: skip
@click.option(
    "--width", type=click.IntRange(32, 4096), default=64, show_default=True, metavar="N",
    help="Width, a multiple of 32.",
)  # fmt: skip
@click.option(
    "--layers", type=click.IntRange(1, 128), default=3, show_default=True, metavar="N",
    help="Layers.",
)  # fmt: skip
@click.option(
    "--window", type=click.IntRange(2, 8192), default=256, show_default=True, metavar="N",
    help="Tokens of a sequence.",
)  # fmt: skip
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-3, show_default=True,
    metavar="R", help="Highest learning rate.",
)  # fmt: skip
@encoding_option
def command(
    files: tuple[Path, ...],
    folder: Path,
    steps: int,
    seed: int,
    threads: int,
    n_vocab: int,
    width: int,
    layers: int,
    window: int,
    learning_rate: float,
    encoding: str,
) -> None:
    """Train a small Llama and its tokenizer on the text of FILES, read once from end to end.

    Members of a family share text, vocabulary and steps and differ in --width and --layers;
    'capax measure capacity DIR/text.gguf' compares them. The same command goes on where it was
    stopped.
    """
    with needs_torch():
        from capax.training.text_family import MemberRecipe, train_text

    from capax.cli.perplexity import read_text

    recipe = MemberRecipe(
        width=width, layers=layers, n_vocab=n_vocab, window=window, steps=steps, seed=seed,
        learning_rate=learning_rate,
    )  # fmt: skip
    texts = [read_text(str(file)) for file in files]
    path = train_text(
        texts, recipe, folder, encoding=encoding, threads=threads, on_report=reporter(steps)
    )
    console().note(f"{path}: next, capax measure capacity {path} --data FILE --max-tokens {window}")
