"""`capax kv inspect`: half-lives of tokens, and a map of the positions that survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.options import json_option, model_argument

if TYPE_CHECKING:
    from capax.measuring.retention import RetentionReport

_SHADES = " .:-=+*#%@"
_COLUMNS = 64


@click.command("inspect")
@click.argument("gates", type=click.Path(path_type=Path))
@model_argument
@click.option("-f", "--text", metavar="FILE", required=True, help="UTF-8 text; - is stdin.")
@click.option("--tokens", type=click.IntRange(2), default=1024, show_default=True, metavar="T")
@click.option("--memory", type=click.IntRange(1), default=128, show_default=True, metavar="M")
@json_option
def command(gates: Path, model: str, text: str, tokens: int, memory: int, as_json: bool) -> None:
    """Show what the retention GATES of MODEL do with a text.

    For each layer and KV head the half-life of a token: after so many more it is worth half. Then
    which part of the text the heads of a layer hold at its end, oldest left, darker is more.
    """
    from capax.cli.perplexity import read_text
    from capax.errors import ConfigError
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.files.tokenizer import load_tokenizer
    from capax.measuring.retention import inspect_retention

    path = resolve(model)
    ids = load_tokenizer(open_model(path)).encode(read_text(text), add_special=False)[:tokens]
    if len(ids) < 2:
        raise ConfigError(f"{text} has {len(ids)} tokens; 2 are the least to look at")
    report = inspect_retention(path, gates, ids, memory)
    if as_json:
        click.echo(json.dumps(report_json(report), indent=2))
        return
    for line in [*half_life_lines(report), "", *map_lines(report)]:
        click.echo(line)


def half_life_lines(report: RetentionReport) -> list[str]:
    """Return a line per layer: median and longest half-life of each head."""
    import numpy as np

    lines = ["layer  half-life in tokens, by KV head: median (longest)"]
    for layer, heads in enumerate(report.half_lives):
        cells = [f"{_short(np.median(h)):>7} ({_short(h.max())})" for h in heads]
        lines.append(f"{layer:>5}  " + "  ".join(f"{cell:<16}" for cell in cells).rstrip())
    longest, medians = report.half_lives.max(axis=2), np.median(report.half_lives, axis=2)
    lines.append(
        f"{int((longest > report.n_tokens).sum())} of {medians.size} heads hold a token for longer "
        f"than the text; half of the tokens last less than 64 in {int((medians < 64).sum())}"
    )
    return lines


def map_lines(report: RetentionReport) -> list[str]:
    """Return a line per layer: which part of the text its heads still hold."""
    n_kept = report.survivors[0].shape[1]
    lines = [f"layer  who is left, {n_kept} of {report.n_tokens} tokens: first ... last"]
    for layer, shares in enumerate(report.survival(_COLUMNS)):
        shades = (_SHADES[min(int(s * len(_SHADES)), len(_SHADES) - 1)] for s in shares)
        lines.append(f"{layer:>5}  |{''.join(shades)}|")
    return lines


def report_json(report: RetentionReport) -> dict[str, object]:
    """Return what --json prints."""
    import numpy as np

    return {
        "n_tokens": report.n_tokens,
        "half_life_median": np.median(report.half_lives, axis=2).tolist(),
        "half_life_longest": report.half_lives.max(axis=2).tolist(),
        "survivors": [s.tolist() for s in report.survivors],
    }


def _short(tokens: float) -> str:
    return f"{tokens:.3g}" if tokens < 1e6 else "forever"
