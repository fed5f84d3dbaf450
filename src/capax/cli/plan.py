"""`capax plan`: what a model would hold and how fast it would be, from headers alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from capax.cli.console import console
from capax.cli.options import SizeType, chosen_kv, json_option, model_argument

if TYPE_CHECKING:
    from capax.files.model_file import ModelFile
    from capax.planning.machine import Machine
    from capax.planning.plan import DoesNotFit, Plan
    from capax.planning.probe import Probe


@click.command("plan")
@model_argument
@click.option("--memory", type=SizeType(), metavar="SIZE", help="Hard limit on everything held.")
@click.option(
    "-c", "--ctx-size", "--context", "--max-model-len", "ctx_size", type=click.IntRange(1),
    metavar="N", help="Context in tokens. Default: the model's, shrunk if it must be.",
)  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads.")
@click.option("--kv", metavar="METHOD", help="KV cache: f32, f16, bf16, int8, or a method.")
@click.option("--parallel", type=click.IntRange(1), default=1, help="Sequences at a time.")
@json_option
def command(
    model: str,
    memory: int | None,
    ctx_size: int | None,
    threads: int | None,
    kv: str | None,
    parallel: int,
    as_json: bool,
) -> None:
    """Show what MODEL would hold, part by part, and how fast it would run.

    Reads headers only. Exits with 3 if it does not fit, naming what would. Speeds come from
    the probe of this machine, which is made once if there is none.
    """
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.planning.budget import Budget
    from capax.planning.machine import read_machine, usable_threads
    from capax.planning.plan import DoesNotFit, plan_run

    file = open_model(resolve(model))
    machine = read_machine()
    probe = probe_of(machine, threads or usable_threads(machine).n)
    try:
        plan = plan_run(
            file,
            Budget(memory),
            context_len=ctx_size,
            kv=chosen_kv(kv, None, None),
            threads=threads,
            n_sequences=parallel,
            machine=machine,
            probe=probe,
            name=model,
        )
    except DoesNotFit as refusal:
        if as_json:
            click.echo(json.dumps(refusal_json(refusal), indent=2))
        raise
    if as_json:
        document = plan.to_json() | {
            "max_context": max_contexts(file, plan),
            "contexts": context_rows(file, plan),
        }
        click.echo(json.dumps(document, indent=2))
    else:
        for line in plan_lines(file, plan):
            click.echo(line)
        verb = "run" if file.config.encoder is None else "embed"
        console().note(f"next: capax {verb} {model}{_memory_flag(memory)}")


def probe_of(machine: Machine, threads: int) -> Probe | None:
    """Return the kept probe of this machine, or make and keep one.

    None, said in a note, if the machine cannot be measured (the disk of a read-only or full
    cache): the bytes of a plan do not need it.
    """
    from capax import _native
    from capax.errors import StoreError
    from capax.planning.probe import cached_probe, keep_probe, measure
    from capax.settings import apply_isa

    probe = cached_probe(machine, apply_isa(), threads)
    if probe is None:
        console().note("measuring this machine once (capax probe) ...")
        try:
            probe = measure(machine, threads, _native, on_progress=console().detail)
        except (StoreError, OSError) as e:
            console().note(f"no speeds are predicted: {e}")
            return None
        try:
            keep_probe(probe)
        except (StoreError, OSError) as e:
            console().note(f"the measurement is not kept: {e}")
    return probe


def plan_lines(file: ModelFile, plan: Plan) -> list[str]:
    """Return the plan as a person reads it."""
    from capax.planning.sizes import format_size

    f = plan.footprint
    weights = f.weights + f.streaming
    lines = [
        f"weights {format_size(weights)} · KV {format_size(f.kv)} @ {plan.context_len} "
        f"({plan.kv}) · scratch {format_size(f.scratch)} · tokenizer "
        f"{format_size(f.tokenizer)} · base {format_size(f.base)} → {format_size(f.total)} of "
        f"{plan.limit}  FITS",
        f"threads {plan.threads} ({plan.threads_reason})",
    ]
    if plan.prediction is not None:
        p = plan.prediction
        lines += [
            f"predicted {p.decode_tokens_per_second:.1f} tok/s, "
            f"{p.decode_tokens_per_second_at_full_context:.1f} tok/s at {plan.context_len}, "
            f"prompt {p.prefill_tokens_per_second:.0f} tok/s",
            f"  from the {p.basis}",
        ]
    longest = " · ".join(f"{n} ({kv})" for kv, n in max_contexts(file, plan).items() if n)
    lines.append(f"max context here: {longest} of {file.config.context_len}")
    lines += [f"note: {note}" for note in plan.notes]
    lines.append("context      f16 total    int8 total")
    for row in context_rows(file, plan):
        cells = [
            f"{format_size(int(str(row[kv])))}{'' if row[f'{kv}_fits'] else ' !'}"
            for kv in ("f16", "int8")
        ]
        mark = "  <- this plan" if row["context_len"] == plan.context_len else ""
        lines.append(f"{row['context_len']:>7}  {cells[0]:>13} {cells[1]:>13}{mark}")
    if any(not row["f16_fits"] for row in context_rows(file, plan)):
        lines.append("(! exceeds the limit)")
    return lines


def max_contexts(file: ModelFile, plan: Plan) -> dict[str, int | None]:
    """Return the longest context that fits with this plan's weights, for f16 and int8 KV."""
    from dataclasses import replace

    from capax.planning.plan import longest_context

    whole = replace(plan.shape, context_len=file.config.context_len)
    return {
        "f16": longest_context(file, replace(whole, kv="f16"), plan.limit.nbytes, 1),
        "int8": longest_context(file, replace(whole, kv="int8"), plan.limit.nbytes, 1),
    }


def context_rows(file: ModelFile, plan: Plan) -> list[dict[str, int | bool]]:
    """Return the total bytes by context, with this plan's weights, for f16 and int8 KV."""
    from dataclasses import replace

    from capax.planning.footprint import footprint

    full = file.config.context_len
    contexts = {n for n in (512 << i for i in range(18)) if n < full} | {full, plan.context_len}
    rows: list[dict[str, int | bool]] = []
    for n in sorted(contexts):
        row: dict[str, int | bool] = {"context_len": n}
        for kv in ("f16", "int8"):
            shape = replace(plan.shape, context_len=n, kv=kv)
            row[kv] = footprint(file, shape).total
            row[f"{kv}_fits"] = row[kv] <= plan.limit.nbytes
        rows.append(row)
    return rows


def refusal_json(refusal: DoesNotFit) -> dict[str, object]:
    """Return a refusal as --json prints it."""
    from dataclasses import asdict

    return {
        "fits": False,
        "error": str(refusal),
        "needed_bytes": refusal.needed.to_json(),
        "alternatives": [asdict(way) for way in refusal.alternatives],
    }


def _memory_flag(memory: int | None) -> str:
    from capax.planning.sizes import size_argument

    return "" if memory is None else f" --memory {size_argument(memory)}"
