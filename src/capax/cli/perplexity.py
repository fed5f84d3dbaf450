"""`capax perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from capax.cli.console import console
from capax.cli.options import chosen_kv, json_option, machine_options, model_argument
from capax.cli.recording import data_of, engine_facts, keep, record_folder, record_option

MAX_TEXT_NBYTES = 256 << 20


@click.command("perplexity")
@model_argument
@click.option(
    "-f", "--text", "--file", "text", metavar="FILE", required=True, help="UTF-8 text; - is stdin."
)
@click.option(
    "-c", "--context", "--ctx-size", "context", type=click.IntRange(2), default=512,
    show_default=True, metavar="N", help="Tokens of a window.",
)  # fmt: skip
@click.option("--windows", type=click.IntRange(1), metavar="N", help="Stop after N windows.")
@machine_options
@click.option("--kv", metavar="METHOD", help="KV cache: f32, f16, bf16, int8, or a method.")
@record_option
@json_option
def command(
    model: str,
    text: str,
    context: int,
    windows: int | None,
    threads: int | None,
    memory: int | None,
    kv: str | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Measure the perplexity of MODEL on a text.

    The tokens of the text are cut into consecutive windows of --context tokens that do not
    overlap. The first token of a window is not scored. BOS is added, at the head of each
    window, only if the model asks for it. A rest that fills no window is left out.
    """
    from capax import LLM
    from capax.measuring.figures import perplexity_figures
    from capax.measuring.perplexity import Tally, perplexity, windows_of
    from capax.measuring.records import Record, now
    from capax.planning.sizes import format_duration

    folder = record_folder(record)
    content = read_text(text)
    llm = LLM(model, memory=memory, ctx_size=context, threads=threads, kv=chosen_kv(kv, None, None))
    cut = windows_of(content, llm.tokenizer, context, windows)
    tally = Tally()
    started = time.perf_counter()
    for number, tally in enumerate(perplexity(llm, llm.tokenizer, cut), 1):
        if not as_json:
            click.echo(f"[{number}]{tally.perplexity:.4f},", nl=False)
            sys.stdout.flush()
        if number == 1 and len(cut) == 1:
            console().note(f"one window of {context}")
        elif number == 1:
            rest = (len(cut) - 1) * (time.perf_counter() - started)
            console().note(f"{len(cut)} windows of {context}, about {format_duration(rest)}")
    if folder is not None:
        seconds = time.perf_counter() - started
        keep(
            folder,
            Record(
                kind="perplexity",
                time=now(),
                data=data_of(text, content.encode(), len(cut)),
                settings={"context": context, "windows": windows},
                figures=perplexity_figures(tally, seconds),
                **engine_facts(llm, memory, context),
            ),
        )
    if as_json:
        document = {
            "perplexity": tally.perplexity,
            "nll_per_token": tally.nll_per_token,
            "n_tokens": tally.n_tokens,
            "bits_per_byte": tally.bits_per_byte,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo()
        click.echo(f"Final estimate: PPL = {tally.perplexity:.4f} +/- {tally.standard_error:.5f}")


def read_text(name: str) -> str:
    """Return the text of a file, or of stdin for '-'. Raises ConfigError if it is not UTF-8."""
    from capax.errors import ConfigError

    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MAX_TEXT_NBYTES + 1)
        else:
            with Path(name).open("rb") as file:
                raw = file.read(MAX_TEXT_NBYTES + 1)
        if len(raw) > MAX_TEXT_NBYTES:
            raise ConfigError(
                f"{name} has more than {MAX_TEXT_NBYTES >> 20} MiB; give a part of it"
            )
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{name} is not UTF-8 at byte {e.start:,}; convert it first") from None
    except OSError as e:
        raise ConfigError(f"cannot read {name}: {e.strerror}") from None
