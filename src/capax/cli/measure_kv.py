"""`capax measure kv`: KV methods side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.bench import NumbersType, machine_json
from capax.cli.console import console
from capax.cli.json_files import write_json
from capax.cli.options import json_option, machine_options, model_argument
from capax.cli.perplexity import read_text
from capax.cli.recording import (
    data_of,
    engine_facts,
    keep,
    plain,
    record_folder,
    record_option,
)
from capax.cli.run_facts import run_facts
from capax.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capax import LLM
    from capax.files.page import Table
    from capax.measuring.kv_report import Found, MethodReport, Settings
    from capax.measuring.records import Record

DEFAULT_METHODS = "f16,int8,int4"


class MethodsType(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.4
    """KV methods with commas between them; a comma before name= belongs to a method's options."""

    name = "methods"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        methods = split_methods(str(value))
        if not methods:
            self.fail("no method is named; write f16,int8,int4", param, ctx)
        from capax.kv import kv_name

        for method in methods:
            try:
                kv_name(method)
            except ConfigError as e:
                self.fail(str(e), param, ctx)
        return tuple(methods)


def split_methods(text: str) -> list[str]:
    """Cut 'full,xquant:bits=4,group=64,int8' into its three methods."""
    methods: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if methods and ":" in methods[-1] and re.fullmatch(r"[\w-]+\s*=.*", part):
            methods[-1] += "," + part
        else:
            methods.append(part)
    return methods


@click.command("kv")
@model_argument
@click.option("-f", "--text", metavar="FILE", required=True, help="UTF-8 text; - is stdin.")
@click.option(
    "--methods", type=MethodsType(), default=DEFAULT_METHODS, show_default=True, metavar="LIST",
    help="KV methods with their options, e.g. f16,kivi:bits=2,block=64.",
)  # fmt: skip
@click.option(
    "-c", "--context", type=click.IntRange(2), default=4096, show_default=True, metavar="N",
    help="Tokens of a chunk, and of a text with needles.",
)  # fmt: skip
@click.option(
    "--chunks", type=click.IntRange(1), default=4, show_default=True, metavar="N",
    help="Chunks of the text to compare on.",
)  # fmt: skip
@click.option(
    "--depths", type=NumbersType(), default="256,1024,4096", show_default=True, metavar="LIST",
    help="Tokens in the cache when decoding is timed; 0: do not.",
)  # fmt: skip
@click.option(
    "--bursts", type=click.IntRange(2, 1000), default=8, show_default=True, metavar="N",
    help="Times that each method decodes 16 tokens at a depth.",
)  # fmt: skip
@click.option(
    "--needles", type=click.IntRange(0, 1000), default=8, show_default=True, metavar="N",
    help="Texts with a pass key, and as many with four numbers; 0: none.",
)  # fmt: skip
@click.option("--no-controls", is_flag=True, help="Leave out what each lossy method must beat.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of needles.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Run directory with samples, summary, records and pictures; one that was stopped goes on.",
)  # fmt: skip
@machine_options
@record_option
@json_option
def command(
    model: str,
    text: str,
    methods: tuple[str, ...],
    context: int,
    chunks: int,
    depths: tuple[int, ...],
    bursts: int,
    needles: int,
    no_controls: bool,
    seed: int,
    out: Path | None,
    threads: int | None,
    memory: int | None,
    record: str | None,
    as_json: bool,
) -> None:
    """Compare KV methods on MODEL: quality, bytes, decode speed, and what they still find.

    KL is between the predictions under the full float32 cache and under a method, in nats per
    token. Bytes are predicted as 'capax plan' does, and beside those taken. Needles are a pass key
    in a long text, and the numbers of four cities, answered greedily. Each lossy method comes with
    a control: random eviction, or uniform codes per token at the same bits.
    """
    from capax import LLM
    from capax.files.model_file import open_model
    from capax.files.registry import resolve
    from capax.measuring import kv_report
    from capax.measuring.cells import Cells

    folder = record_folder(record)
    content = read_text(text)
    config = open_model(resolve(model)).config
    if config.encoder is not None:
        raise ConfigError(f"{model} is an encoder, which has no KV cache; give a model that writes")
    settings = kv_report.Settings(
        context, chunks, tuple(d for d in depths if d), bursts, needles, seed
    )
    kv_report.check_depths(settings, config.context_len)
    chosen = kv_report.choose(config, methods, with_controls=not no_controls)
    llm = LLM(model, memory=memory, ctx_size=settings.context_needed, threads=threads, kv="f32")
    kv_report.check(llm, chosen, settings)
    if out is None:
        reports = kv_report.run(llm, content, chosen, settings, Cells(), _tell())
    else:
        limits = {"memory_bytes": memory, "threads": threads}
        facts = run_facts(model, seeds={"needles": seed}, limits=limits)
        reports = _run_in(out, llm, memory, text, content, chosen, settings, facts)
    document = to_json(llm, settings, reports)
    if folder is not None:
        for made in records_of(llm, memory, text, content, settings, reports):
            keep(folder, made)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        for line in table(reports, settings):
            click.echo(line)
        for report in reports:
            if report.quality.prediction_error > kv_report.OFF_BY:
                console().note(
                    f"{report.name}: {report.quality.kept_bytes_per_token:,.0f} B a token were "
                    f"taken, {report.quality.prediction_error:.1%} from what was planned"
                )


def records_of(
    llm: LLM, memory: int | None, name: str, content: str, settings: Settings,
    reports: Sequence[MethodReport],
) -> list[Record]:  # fmt: skip
    """Return a record of each method: they differ in it alone."""
    from dataclasses import asdict

    from capax.measuring.figures import kv_figures
    from capax.measuring.records import Record, now

    facts = engine_facts(llm, memory, settings.context_needed)
    chosen = plain(asdict(settings))
    seed = chosen.pop("seed")
    return [
        Record(
            kind="kv",
            time=now(),
            data=data_of(name, content.encode()),
            settings=chosen,
            seed=seed if isinstance(seed, int) else None,
            figures=kv_figures(report),
            **{**facts, "method": facts["method"] | {"kv": report.name}},
        )
        for report in reports
    ]


def _run_in(
    out: Path, llm: LLM, memory: int | None, name: str, content: str, chosen: Any,
    settings: Settings, facts: dict[str, Any],
) -> list[MethodReport]:  # fmt: skip
    """Measure into a run directory; what it holds already is not measured again."""
    from capax.files.picture import has_matplotlib
    from capax.measuring import kv_report
    from capax.measuring.cells import opened
    from capax.measuring.kv_picture import draw
    from capax.measuring.measured_run import RECORDS, MeasuredRun
    from capax.measuring.records import write_record

    if (out / "cells.jsonl").exists():
        raise ConfigError(
            f"{out} was begun by an older capax, which had no manifest; give another directory"
        )
    config = kv_report.settings_of(llm, content, settings)
    with MeasuredRun(out, "kv", config, facts) as run:
        show = _tell()

        def tell(what: str, done: int, n: int) -> None:
            show(what, done, n)
            if n and done == n:
                run.log("measured", what=what, n=n)

        with opened(run.samples, None) as cells:
            reports = kv_report.run(llm, content, chosen, settings, cells, tell)
        records = records_of(llm, memory, name, content, settings, reports)
        (out / RECORDS).mkdir(exist_ok=True)
        for stale in (out / RECORDS).glob("*.json"):
            stale.unlink()
        for number, record in enumerate(records):
            write_record(out / RECORDS, record, f"{number:02}.json")
        write_json(out / "summary.json", to_json(llm, settings, reports))
        title = f"{Path(llm.plan.model).name}, {llm.threads} threads"
        if has_matplotlib():
            draw(reports, out / "picture.png", title)
        else:  # the figures are kept all the same
            console().note("no picture; it needs: pip install 'capax[plots]'")
        run.finish(
            records, f"{len(reports)} KV methods on {Path(name).name}.",
            [report_table(reports, settings)], alt="KL over bytes a token, by method",
            draw=(lambda path: draw(reports, path, title)) if has_matplotlib() else None,
        )  # fmt: skip
    return reports


def _tell() -> Any:
    """Return a callback that shows which part is done, on a terminal."""
    from capax.cli.compress import progress

    shows: dict[str, Any] = {}

    def tell(what: str, done: int, n: int) -> None:
        if what not in shows:
            shows[what] = progress("measured", what)
        if shows[what] is not None and n:
            shows[what](done, n)

    return tell


def to_json(llm: LLM, settings: Settings, reports: Sequence[MethodReport]) -> dict[str, Any]:
    """Return everything measured, and what a number needs beside it."""
    from dataclasses import asdict

    machine = machine_json(llm)
    del machine["kv"]
    return {
        "model": Path(llm.plan.model).name,  # no place of this machine
        "machine": machine,
        "settings": asdict(settings),
        "methods": [report.to_json() for report in reports],
    }


def table(reports: Sequence[MethodReport], settings: Settings) -> list[str]:
    """Return the comparison as a Markdown table."""
    made = report_table(reports, settings)
    rows = [list(made.head), *map(list, made.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(made.head))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join(_rule(i, w) for i, w in enumerate(widths)) + "|")
    return lines + _controls(reports)


def report_table(reports: Sequence[MethodReport], settings: Settings) -> Table:
    """Return the comparison as a report shows it."""
    from capax.files.page import Table

    head = ["method", "bytes/token", "of f16", "PPL", "KL", "95 %", "top-1"]
    head += [f"t/s @ {depth:,}" for depth in settings.depths]
    if settings.n_prompts:
        head += ["pass key", "4 needles"]
    rows = [_cells(report, settings, _f16_bytes(reports)) for report in reports]
    return Table(head, rows, note=". ".join(_controls(reports)))


def _controls(reports: Sequence[MethodReport]) -> list[str]:
    """Return a line for each control: what it is one of."""
    return [
        f"{report.name} is the control of {', '.join(report.control_of)}"
        for report in reports
        if report.control_of
    ]


def _f16_bytes(reports: Sequence[MethodReport]) -> float:
    """Return the bytes per token of the full cache in f16: half of the reference's."""
    return reports[0].quality.total_bytes_per_token / 2


def _cells(report: MethodReport, settings: Settings, f16: float) -> list[str]:
    row = report.quality
    total = row.total_bytes_per_token
    cells = [
        report.name,
        f"{total:,.0f}",
        f"{total / f16:.3f}",
        f"{row.perplexity:.3f}",
        f"{row.kl:.5f}",
        f"{row.kl_interval.low:.5f}-{row.kl_interval.high:.5f}",
        f"{row.top1:.4f}",
    ]
    for depth in settings.depths:
        cells.append(f"{report.speeds[depth].median:.1f}" if depth in report.speeds else "-")
    if settings.n_prompts:
        cells += [_found(report.passkey), _found(report.multi_needle)]
    return cells


def _found(found: Found | None) -> str:
    return "-" if found is None else f"{found.n_right}/{found.n_questions}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "| " + " | ".join([first, *rest]) + " |"


def _rule(column: int, width: int) -> str:
    return "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
