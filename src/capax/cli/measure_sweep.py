"""`capax measure sweep`: one model in several encodings on several texts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.console import console
from capax.cli.options import chosen_kv, json_option, machine_options, model_argument
from capax.cli.run_facts import run_facts
from capax.errors import ConfigError
from capax.files.page import Table

if TYPE_CHECKING:
    from capax.files.model_file import ModelFile
    from capax.measuring.records import Record
    from capax.measuring.sweep import Cell, Sweep

AS_IT_IS = "original"


@click.command("sweep")
@model_argument
@click.argument("texts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-e", "--encodings", default=f"{AS_IT_IS},Q8_0,Q6_K,Q4_0", show_default=True, metavar="TYPES",
    help="As 'capax quantize' writes them; 'original' is MODEL as it is.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Run directory, for encoded models, records and sweep.png as well; one that exists is "
    "continued. Default: a new one in runs/.",
)  # fmt: skip
@click.option(
    "-c", "--context", type=click.IntRange(2), default=512, show_default=True, metavar="N",
    help="Tokens of a window.",
)  # fmt: skip
@click.option("--windows", type=click.IntRange(1), metavar="N", help="Stop after N windows.")
@machine_options
@click.option("--kv", metavar="TYPE", help="KV cache: f32, f16, bf16 or int8.")
@json_option
def command(
    model: str,
    texts: tuple[Path, ...],
    encodings: str,
    out: Path | None,
    context: int,
    windows: int | None,
    threads: int | None,
    memory: int | None,
    kv: str | None,
    as_json: bool,
) -> None:
    """Measure perplexity and bits per byte of MODEL in several encodings on several TEXTS.

    Every finished cell is a record in DIR/records. The same command continues a sweep that was
    stopped, at any moment and in any way, and computes no finished cell again; with more texts or
    encodings it adds their cells. Context, windows and KV cache are those of the whole sweep.
    """
    from capax.cli.perplexity import read_text
    from capax.files.digest import weights_digest
    from capax.files.model_file import open_model
    from capax.files.picture import require_matplotlib
    from capax.files.registry import resolve
    from capax.files.run_folder import new_run_path
    from capax.measuring.record_picture import draw
    from capax.measuring.sweep import Sweep, Text

    require_matplotlib()
    chosen = _encodings(encodings)
    source = open_model(resolve(model))
    kv = chosen_kv(kv, None, None)
    settings = {"context": context, "windows": windows, "kv": kv}
    loaded = [Text.of(path.name, read_text(str(path))) for path in texts]
    digest = weights_digest(source).hex()
    path = out or new_run_path(Path("runs"), "sweep", {"model": digest, **settings})
    limits = {"memory_bytes": memory, "threads": threads}
    with Sweep(path, digest, settings, run_facts(model, seeds={}, limits=limits)) as sweep:
        cells = sweep.cells(chosen, loaded)
        missing = [cell for cell in cells if cell.record is None]
        console().note(f"{len(cells)} cells, {len(cells) - len(missing)} of them finished before")
        sweep.log_progress(len(cells) - len(missing), len(cells))
        for number, cell in enumerate(missing, 1):
            started = time.perf_counter()
            made = _measure(sweep, cell, source, model, context, windows, threads, memory, kv)
            sweep.keep(cell, made)
            seconds = time.perf_counter() - started
            sweep.log_progress(len(cells) - len(missing) + number, len(cells))
            console().note(
                f"[{number}/{len(missing)}] {cell.encoding} on {cell.text.name}: "
                f"{_value(made, 'bits_per_byte'):.4f} bits per byte, {seconds:.1f} s"
            )
        records = [r for cell in sweep.cells(chosen, loaded) if (r := cell.record) is not None]
        names = [text.name for text in loaded]
        sweep.finish(
            records, f"{len(chosen)} encodings of {Path(model).stem} on {len(loaded)} texts.",
            [_table(records, chosen, names)], alt="bits per byte over the weights' size",
            draw=lambda path: draw(records, "bits_per_byte", "weights_nbytes", path),
        )  # fmt: skip
        picture = path / "sweep.png"
        draw(records, "bits_per_byte", "weights_nbytes", picture)
    if as_json:
        import msgspec

        document = {
            "computed": len(missing),
            "picture": str(picture),
            "records": [{"id": r.id, **msgspec.to_builtins(r)} for r in records],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for line in _lines(_table(records, chosen, names)):
        click.echo(line)
    click.echo(f"{path / 'records'}: {len(records)} records; {picture}")
    console().note(f"next: capax measure leaderboard {path / 'records'} -o page.html")


def _encodings(text: str) -> list[str]:
    from capax.weights.requantize import TARGETS

    chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    chosen = [c if c.lower() == AS_IT_IS else c.upper() for c in chosen]
    for name in chosen:
        if name != AS_IT_IS and name not in TARGETS:
            raise ConfigError(
                f"--encodings has {name!r:.60}; there are {AS_IT_IS}, {', '.join(TARGETS)}"
            )
    if not chosen:
        raise ConfigError("--encodings is empty; name at least one")
    return chosen


def _measure(
    sweep: Sweep,
    cell: Cell,
    source: ModelFile,
    name: str,
    context: int,
    windows: int | None,
    threads: int | None,
    memory: int | None,
    kv: str | None,
) -> Record:
    """Return the record of one cell; its model is encoded first if it is not there yet."""
    import msgspec

    from capax import LLM
    from capax.cli.compress import progress
    from capax.cli.recording import data_of, engine_facts
    from capax.measuring.figures import perplexity_figures
    from capax.measuring.perplexity import Tally, perplexity, windows_of
    from capax.measuring.records import Record, now

    path = source.path if cell.encoding == AS_IT_IS else _encoded(sweep, cell.encoding, source)
    with LLM(path, memory=memory, ctx_size=context, threads=threads, kv=kv) as llm:
        cut = windows_of(cell.text.content, llm.tokenizer, context, windows)
        show = progress(f"{cell.encoding} on {cell.text.name}:", "windows")
        started = time.perf_counter()
        tallies: list[Tally] = []
        for number, tally in enumerate(perplexity(llm, llm.tokenizer, cut), 1):
            tallies = [tally]
            if show:
                show(number, len(cut))
        seconds = time.perf_counter() - started
        facts = engine_facts(llm, memory, context)
    facts["model"] = msgspec.structs.replace(facts["model"], name=Path(name).stem)
    facts["method"] = {**facts["method"], "encoding": cell.encoding}
    return Record(
        kind="perplexity",
        time=now(),
        data=data_of(cell.text.name, cell.text.content.encode(), len(cut)),
        settings={"context": context, "windows": windows},
        figures=perplexity_figures(tallies[-1], seconds),
        **facts,
    )


def _encoded(sweep: Sweep, encoding: str, source: ModelFile) -> Path:
    from capax.weights.requantize import requantize

    path = sweep.model_path(encoding)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        console().note(f"encoding {encoding}")
        requantize(source.path, path, encoding)
    return path


def _value(record: Record, name: str) -> float:
    figure = record.figure(name)
    value = None if figure is None else figure.value
    return float("nan") if value is None else value


def _table(records: list[Record], encodings: list[str], texts: list[str]) -> Table:
    """Return bits per byte: a row for each encoding, a column for each text, as the cells are."""
    rows = []
    for number, encoding in enumerate(encodings):
        row = records[number * len(texts) : (number + 1) * len(texts)]
        nbytes = (row[0].model.weights_nbytes or 0) / 1e6
        values = [f"{_value(record, 'bits_per_byte'):.4f}" for record in row]
        rows.append((encoding, f"{nbytes:.1f}", *values))
    return Table(("bits per byte", "MB", *texts), rows)


def _lines(table: Table) -> list[str]:
    """Return a table as a terminal shows it."""
    head = tuple(name[-18:] for name in table.head)
    widths = (14, 8, *[18] * len(head[2:]))
    return [
        " ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in
                 enumerate(zip(row, widths, strict=True)))
        for row in (head, *table.rows)
    ]  # fmt: skip
