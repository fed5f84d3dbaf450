"""`capax train retention`: gates that say which tokens a bounded cache keeps."""

from __future__ import annotations

from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.options import model_argument


@click.command("retention")
@model_argument
@click.option("-f", "--text", metavar="FILE", required=True, help="UTF-8 text to learn from.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Where the gates go; the run is kept in FILE.run, and goes on from there.",
)  # fmt: skip
@click.option(
    "--tokens", default=512, show_default=True, metavar="T", help="Tokens of a training text."
)
@click.option("--memory", default=64, show_default=True, metavar="M", help="Entries of a head.")
@click.option("--steps", default=400, show_default=True, metavar="N", help="Texts to learn from.")
@click.option("--width", default=128, show_default=True, help="Hidden units of a gate.")
@click.option("--lr", default=1.5e-3, show_default=True, help="Highest learning rate.")
@click.option("--recall", default=0.25, show_default=True, help="Share of recall documents.")
@click.option(
    "--hold-out", default=0.2, show_default=True, help="Share of the text, its end, not used."
)
@click.option("--seed", default=0, show_default=True, help="Of the first gates and of the texts.")
@click.option(
    "--precision", default="bf16", show_default=True, type=click.Choice(["bf16", "f32"]),
    help="Of the frozen model.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def command(
    model: str,
    text: str,
    output: Path,
    tokens: int,
    memory: int,
    steps: int,
    width: int,
    lr: float,
    recall: float,
    hold_out: float,
    seed: int,
    precision: str,
    threads: int,
) -> None:
    """Train retention gates for MODEL by distillation from MODEL itself.

    They are used by 'capax run MODEL --kv trim:gates=FILE,memory=128'. Interrupted, the same
    command goes on where it was.
    """
    from capax.cli.perplexity import read_text
    from capax.errors import ConfigError
    from capax.files.model_file import open_model
    from capax.files.registry import resolve

    try:
        from capax.training.retention_run import Recipe, RetentionRun, use_threads
    except ImportError as error:
        raise ConfigError(
            f"training needs PyTorch ({error}); install it with pip install 'capax[train]'"
        ) from error
    use_threads(threads)
    recipe = Recipe(
        n_tokens=tokens, memory=memory, steps=steps, width=width, learning_rate=lr,
        recall=recall, hold_out=hold_out, tight_after=round(0.6 * steps),
        tight_memory=max(memory // 2, 1), seed=seed,
        precision=precision,
    )  # fmt: skip
    run = RetentionRun(
        open_model(resolve(model)), read_text(text), recipe, output.with_name(output.name + ".run")
    )
    if run.step:
        console().note(f"going on from step {run.step} of {steps}")
    run.train(output, _say)
    console().note(f"{output}: next, capax kv inspect {output} {model}")


def _say(line: dict[str, float]) -> None:
    console().note(
        f"step {line['step']:.0f}: KL {line['kl']:.3f}, next token {line['next_token']:.3f}, "
        f"capacity {line['capacity']:.3f}, held {line['held_min']:.0f}.."
        f"{line['held_max']:.0f} (mean {line['held_mean']:.0f}), {line['seconds']:.1f} s"
    )
    if line["layers_below_half"]:
        console().detail(f"  {line['layers_below_half']:.0f} layers hold less than half the memory")
