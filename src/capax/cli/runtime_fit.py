"""`capax measure runtime fit`: the profile that samples amount to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from capax.cli.options import json_option
from capax.cli.recording import data_of, keep, plain, record_folder, record_option


@click.command("fit")
@click.argument("samples_file", metavar="SAMPLES", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "output", type=click.Path(path_type=Path), metavar="OUT",
    help="Profile to write, a table in HELM's form.",
)  # fmt: skip
@click.option(
    "--denoise", is_flag=True,
    help="Machine was shared: minimum of each cell, no check of stability.",
)  # fmt: skip
@click.option("--no-kappa", is_flag=True, help="Without the term for reading the cache.")
@record_option
@json_option
def command(
    samples_file: Path,
    output: Path | None,
    denoise: bool,
    no_kappa: bool,
    record: str | None,
    as_json: bool,
) -> None:
    """Fit T(p, o) to SAMPLES of 'capax measure runtime profile'.

    A cell is the lower quartile of its repeats, since disturbances only add time. Samples of this
    engine are fitted with the term for reading the cache, others if a test finds it.

    Refuses samples whose rounds disagree by more than 5 % in the time per token, and samples
    whose times their output tokens do not explain.
    """
    from capax.cli.json_files import read_json, write_json
    from capax.errors import ConfigError
    from capax.measuring import idealized_runtime as runtime
    from capax.measuring.figures import runtime_figures
    from capax.measuring.records import Model, Record, now, versions
    from capax.measuring.runtime_profile import read_samples

    folder = record_folder(record)
    document = read_json(samples_file)
    samples = read_samples(document)
    name = str(document.get("model", samples_file.stem))
    about = document.get("about")
    about = about if isinstance(about, dict) else {}
    # Our engine reads its cache for every token; of others a test has to say so.
    kappa: bool | Literal["test"] = not no_kappa and (True if about.get("isa") else "test")
    if denoise:
        spread = None
        result = runtime.denoise(samples, remove_overhead=False)
    else:
        spread = runtime.check_stable(samples)
        result = runtime.fit(runtime.cells(samples), kappa)
    model = result.model
    spent = sum(s.seconds for s in samples)
    figures = {
        "r2": result.r2,
        "median_error": result.median_error,
        "max_error": result.max_error,
        "kappa_ratio": result.kappa_ratio,
        "rounds_differ": spread,
        "denoised": denoise,
        "profiling_s": spent,
    }
    machine = {name: about.get(name) for name in ("cpu", "isa", "threads", "memory_bytes")}
    keep(
        folder,
        Record(
            kind="runtime",
            time=now(),
            model=Model(name=name, digest=str(about.get("digest", ""))),
            data=data_of(samples_file, json.dumps(sorted({(s.p, s.o) for s in samples})).encode()),
            method=plain({"kv": about.get("kv")}),
            settings={
                "cells": "min" if denoise else "quartile",
                "denoise": denoise,
                "kappa": not no_kappa,
            },
            machine=plain(machine),
            versions=versions(),
            figures=runtime_figures(result, spread),
        ),
    )
    entry = {**model.to_helm(), "fit": figures, "about": about}
    if output is not None:
        write_json(output, {name: entry})
    if as_json:
        click.echo(json.dumps({name: entry}, indent=2))
        return
    longest = max(model.g)
    rows = [
        ("model", name),
        ("cells", f"{len(result.errors)}, {len(samples):,} queries"),
        ("g", f"{_ms(model.g[min(model.g)])} at p = {min(model.g)}, {_ms(model.g[longest])} at "
              f"p = {longest}"),
        ("beta", f"{_ms(model.beta)} per token, {_ms(model.token_seconds(longest))} at depth "
                 f"{longest}"),
        ("kappa", f"{model.kappa * 1e6:.4f} us per cached token"
                  + (" (the times show none)" if not model.kappa and not no_kappa else "")),
        ("R2", f"{result.r2:.6f}"),
        ("errors", f"median {result.median_error:.2%}, largest {result.max_error:.2%}"),
        ("rounds", "not compared" if spread is None else f"differ by {spread:.1%}"),
        ("profiling", f"{spent:.1f} s, as long as "
                      f"{runtime.break_even(spent, model, longest, 32):.0f} queries of "
                      f"({longest}, 32) measured ten times"),
    ]  # fmt: skip
    try:
        ours, baseline = runtime.held_out_errors(
            runtime.cells(samples, "min" if denoise else "quartile"), kappa
        )
        held_out = f"median {_middle(ours):.2%}, two constants {_middle(baseline):.2%}"
    except ConfigError:
        held_out = "nothing: the grid is too small"
    rows.insert(-2, ("held out", held_out))
    for label, value in rows:
        click.echo(f"{label:<10} {value}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _middle(errors: object) -> float:
    import numpy as np

    return float(np.median(np.asarray(errors)))
