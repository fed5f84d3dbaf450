"""`capax kv cost`: what rematerialisation saves and what it takes, before a model is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from capax.cli.options import json_option, model_argument


@click.command("cost")
@model_argument
@click.option("--kv", "spec", default="xquant", show_default=True, metavar="METHOD")
@json_option
def command(model: str, spec: str, as_json: bool) -> None:
    """Show the bytes of an XQuant cache of MODEL by part, and the operations of reading it.

    T* is how many cached tokens can be rematerialised while an H100 reads the weights; beyond it
    the method saves memory, not time. Published shapes stand beside.
    """
    from capax.errors import ConfigError
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.kv import kv_method
    from capax.kv.xquant import XQuantCaching

    options = kv_method(spec)
    if not isinstance(options, XQuantCaching):
        raise ConfigError(f"--kv is {spec!r:.60}, whose cost is that of its pages; use xquant:...")
    file = open_model(resolve(model))
    report = cost_report(options, file.config, file.nbytes)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for line in cost_lines(report):
        click.echo(line)


def cost_report(options: Any, config: Any, weight_nbytes: int) -> dict[str, Any]:
    """Return what --json prints."""
    from capax.kv.xquant import XQuantLayout
    from capax.kv.xquant_cost import (
        closed_form_size,
        published_break_even,
        remat_flops,
        xquant_cost,
    )

    cost, layout = xquant_cost(options, config), XQuantLayout(options, config)
    return {
        "choice": options.choice(config),
        "bytes_per_token": {
            k: v for k, v in asdict(cost).items() if k in ("codes", "scales", "rms", "accumulator")
        },
        "window_bytes": cost.window,
        "f16_bytes_per_token": cost.f16,
        "stored_of_f16": cost.of_f16,
        "stored_and_live_of_f16": cost.live_of_f16,
        "remat_flops_per_cached_token": cost.remat_flops,
        "remat_flops_values_absorbed": remat_flops(layout, absorbed=True),
        "break_even_tokens_h100": cost.break_even_tokens(weight_nbytes),
        "published_sizes": {
            "X, 4 bits": closed_form_size(32, 4),
            "CL, 3 bits": closed_form_size(32, 3, base_layers=3),
            "CL, 2 bits": closed_form_size(32, 2, base_layers=3),
        },
        "published_break_even_tokens": published_break_even(),
    }


def cost_lines(report: dict[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    lines = [report["choice"], "", "bytes per token, all layers"]
    lines += [f"  {name:<12} {n:>10,.1f}" for name, n in report["bytes_per_token"].items() if n]
    lines += [
        f"  f16 cache    {report['f16_bytes_per_token']:>10,}",
        f"  stored {report['stored_of_f16']:.4f} of f16, "
        f"with the live accumulator {report['stored_and_live_of_f16']:.4f}",
        f"window of a sequence: {report['window_bytes']:,} bytes, whatever its length",
        "",
        f"operations per cached token and step: {report['remat_flops_per_cached_token']:,}, "
        f"values absorbed {report['remat_flops_values_absorbed']:,}",
        f"T* on an H100: {report['break_even_tokens_h100']:,.0f} cached tokens",
        "",
        "sizes of Llama-2-7B's shape: "
        + ", ".join(f"{k} {v:.4f}" for k, v in report["published_sizes"].items()),
        "T* on an H100: "
        + ", ".join(f"{k} {v:,.0f}" for k, v in report["published_break_even_tokens"].items()),
    ]
    return lines
