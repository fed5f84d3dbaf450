"""`capax inspect`: what a model file holds, from its headers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from capax.cli.options import json_option, model_argument

if TYPE_CHECKING:
    from capax.files.describe import ModelDescription

_TEMPLATE_LINES = 12


@click.command("inspect")
@model_argument
@json_option
def command(model: str, as_json: bool) -> None:
    """Show architecture, encodings, bytes, context, licence, tokenizer and chat template.

    MODEL is a name, a GGUF file or a Hugging Face directory. No weight is read.
    """
    from capax.files.describe import describe_model
    from capax.files.registry import resolve

    description = describe_model(resolve(model))
    if as_json:
        click.echo(json.dumps(asdict(description), indent=2))
    else:
        for line in description_lines(description):
            click.echo(line)


def description_lines(model: ModelDescription) -> list[str]:
    """Return the description as a person reads it. Texts of the file cannot move the cursor."""
    from capax.planning.sizes import format_size

    heads = f"{model.n_heads} heads of {model.head_dim}, {model.n_kv_heads} for keys and values"
    window = f", sliding window {model.sliding_window:,}" if model.sliding_window else ""
    tied = ", tied embeddings" if model.tied_embeddings else ""
    size = f"{format_size(model.nbytes)}, {model.bits_per_weight:.2f} bits per weight"
    rows = [
        ("file", f"{model.path} ({model.format}, {format_size(model.file_nbytes)})"),
        ("name", model.name or "not given"),
        ("licence", model.licence or "not given"),
        ("architecture", f"{model.architecture}, {model.n_layers} layers{tied}"),
        ("width", f"{model.d_model} model, {model.d_ffn} feed-forward, {heads}"),
        ("context", f"{model.context_len:,} tokens{window}"),
        ("positions", _positions(model)),
        ("parameters", f"{model.n_parameters:,} ({size})"),
    ]
    for use in model.encodings:
        taken = f"{format_size(use.nbytes)}, {use.n_parameters:,} parameters"
        rows.append((f"  {use.encoding}", f"{use.n_tensors} tensors, {taken}"))
    ends = ", ".join(model.eos_tokens) or "none"
    rows.append(("tokenizer", f"{model.tokenizer}, {model.vocab_size:,} tokens, ends: {ends}"))
    template = (model.chat_template or "none").splitlines() or ["empty"]
    shown = template[:_TEMPLATE_LINES]
    rows.append(("chat template", shown[0]))
    rows.extend(("", line) for line in shown[1:])
    if len(template) > len(shown):
        rows.append(("", f"... {len(template) - len(shown)} more lines, all with --json"))
    return [f"{label:<14} {_printable(value)}".rstrip() for label, value in rows]


def _positions(model: ModelDescription) -> str:
    if model.rope_base is None:
        return f"learned; an encoder, rows pooled by {model.pooling}"
    return f"rope, base {model.rope_base:,.0f}, scaling {model.rope_scaling}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
