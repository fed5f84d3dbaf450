"""`capax measure capacity`: the information capacity of a model on texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from capax.cli.compress import progress, read_bytes
from capax.cli.options import json_option, machine_options, model_argument
from capax.cli.recording import data_of, engine_facts, keep, record_folder, record_option


@click.command("capacity")
@model_argument
@click.option(
    "-f", "--data", "data", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="JSONL with one text per line, or plain text, which is cut at empty lines.",
)  # fmt: skip
@click.option(
    "--field", "fields", multiple=True, default=["text"], show_default=True, metavar="NAME",
    help="Field of a JSONL line; several are joined with a newline.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N texts.")
@click.option(
    "--max-tokens", type=click.IntRange(2), default=1024, show_default=True, metavar="N",
    help="Cut texts to N tokens.",
)  # fmt: skip
@click.option("--bias", type=float, default=0.0, show_default=True, help="The data set's bias b.")
@click.option(
    "--mode", type=click.Choice(["exact", "paper"]), default="exact", show_default=True,
    help="Count as the paper does, or correctly.",
)  # fmt: skip
@machine_options
@record_option
@json_option
def command(
    model: str,
    data: Path,
    fields: tuple[str, ...],
    limit: int | None,
    max_tokens: int,
    bias: float,
    mode: Any,
    threads: int | None,
    memory: int | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Measure how many bits of text MODEL saves per unit of compute.

    Texts are scored alone, each from position 0. IC = (TS - NLL + b) / log2(FLOPs per token):
    TS and NLL are bits per token of the text as it is and as the model codes it. Values are
    comparable between models on the same data with the same bias; bits per byte are comparable
    between all models on the same data.
    """
    from capax import LLM
    from capax.measuring.figures import capacity_figures
    from capax.measuring.flops import DecoderShape, exact_flops, published_flops
    from capax.measuring.information_capacity import capacity, score_texts
    from capax.measuring.records import Record, now

    folder = record_folder(record)
    texts = list(read_texts(data, fields, limit))
    llm = LLM(model, memory=memory, ctx_size=max_tokens, threads=threads)
    if mode == "paper":
        flops = published_flops(DecoderShape.of(llm.config), max_tokens) / max_tokens
    else:
        flops = exact_flops(llm.config, max_tokens) / max_tokens
    show = progress("scored", "texts") or (lambda done, total: None)
    scores = []
    for score in score_texts(llm, llm.tokenizer, texts, max_tokens):
        scores.append(score)
        show(len(scores), len(texts))
    report = capacity(scores, flops, bias=bias, mode=mode)
    if folder is not None:
        settings = {"max_tokens": max_tokens, "mode": mode, "bias": bias}
        keep(
            folder,
            Record(
                kind="capacity",
                time=now(),
                data=data_of(data, json.dumps(texts).encode(), len(texts)),
                settings=settings,
                figures=capacity_figures(report),
                **engine_facts(llm, memory, max_tokens),
            ),
        )
    if as_json:
        click.echo(json.dumps({**asdict(report), "gain": report.gain}, indent=2))
        return
    low, high = report.nll_interval
    rows = [
        ("texts", f"{report.n_texts:,} ({report.n_skipped} too short), {report.n_tokens:,} tokens"),
        ("text size TS", f"{report.text_size:.4f} bits/token"),
        ("NLL", f"{report.nll:.4f} bits/token (95 % {low:.4f} to {high:.4f})"),
        ("bits per byte", f"{report.bits_per_byte:.4f}"),
        ("compute", f"{flops / 1e9:.6f} GFLOP/token ({mode}, {max_tokens} tokens)"),
        ("bias b", f"{bias:g}"),
        ("IC", "undefined: gain + b is not positive" if report.ic is None else f"{report.ic:.6f}"),
        ("dIC/dNLL", f"{report.ic_per_nll:.6f} per bit"),
        ("BOS", "added to each text" if llm.tokenizer.add_bos else "not added"),
        ("vocabulary", f"{llm.tokenizer.vocab_size:,} tokens, {llm.config.vocab_size:,} logits"),
    ]
    for name, value in rows:
        click.echo(f"{name:<14} {value}")


def read_texts(path: Path, fields: tuple[str, ...], limit: int | None) -> Iterator[str]:
    """Yield the texts of a file. Raises ConfigError naming the line that is not as expected."""
    from itertools import islice

    from capax.errors import ConfigError

    raw = read_bytes(path)
    try:
        content = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 at byte {e.start:,}; convert it first") from None
    texts = _lines(path, content, fields) if path.suffix == ".jsonl" else _paragraphs(content)
    yield from islice(texts, limit)


def _lines(path: Path, content: str, fields: tuple[str, ...]) -> Iterator[str]:
    from capax.errors import ConfigError

    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            parts = [entry[field] for field in fields]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ConfigError(
                f"{path} line {number} is no JSON object with {', '.join(fields)} "
                f"({type(e).__name__}: {e}); choose fields with --field"
            ) from None
        if not all(isinstance(part, str) for part in parts):
            raise ConfigError(f"{path} line {number}: {', '.join(fields)} must be text")
        yield "\n".join(parts)


def _paragraphs(content: str) -> Iterator[str]:
    import re

    for paragraph in re.split(r"\n\s*\n", content):
        if paragraph.strip():
            yield paragraph.strip()
