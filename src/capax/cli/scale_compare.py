"""`capax scale compare`: strategies on the same tasks, by the tokens they take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capax.cli.asked import Where, progress_of, where_options
from capax.cli.options import json_option, model_argument
from capax.errors import ConfigError
from capax.files.picture import has_matplotlib, require_matplotlib, save_picture, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from capax.scaling.comparing import Row


@click.command("compare")
@model_argument
@click.argument("tasks_file", metavar="TASKS", type=click.Path(path_type=Path))
@click.option(
    "-s", "--strategy", "specs", multiple=True, required=True, metavar="STRATEGY",
    help="For example majority:n=8; may be repeated. See 'capax methods strategy'.",
)  # fmt: skip
@click.option(
    "--cap", "caps", multiple=True, type=click.IntRange(1), metavar="N",
    help="Tokens that one task may take, all calls together; may be repeated. Default: no cap.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Run directory; one that exists is continued. Default: a new one in runs/.",
)  # fmt: skip
@click.option("--checker", metavar="NAME", help="Checker of tasks that name none.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N tasks.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Tokens per answer.",
)  # fmt: skip
@click.option(
    "--temp", "--temperature", "temperature", type=float, default=0.6, show_default=True,
    metavar="T", help="Temperature.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed.")
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
    help="Tasks at a time.",
)  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the table.")
@where_options
@json_option
def command(
    model: str,
    tasks_file: Path,
    specs: tuple[str, ...],
    caps: tuple[int, ...],
    out: Path | None,
    checker: str | None,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    concurrency: int,
    plot: Path | None,
    where: Where,
    as_json: bool,
) -> None:
    """Answer each task in TASKS by each strategy, and show what the tokens bought.

    Tokens are those of all calls, prompts included. '*' marks what no other row beats in both
    accuracy and tokens. The same command with the same --out goes on where it was stopped, and with
    further strategies adds them. DIR gets a run directory for each strategy and cap, compare.json,
    and report.html, a page that needs no other file.
    """
    from capax import SamplingParams
    from capax.endpoints import Ledger
    from capax.files.run_folder import RunFolder, new_run_path
    from capax.scaling.compare_report import write_comparison
    from capax.scaling.comparing import Cell, compare, shared_config
    from capax.scaling.comparing import as_json as rows_json
    from capax.scaling.strategies.strategy import parse_strategy
    from capax.scaling.tasks import read_tasks

    tasks = read_tasks(tasks_file, checker, limit)
    cells = [Cell(parse_strategy(spec), cap) for spec in specs for cap in (caps or (None,))]
    if len({cell.name for cell in cells}) < len(cells):
        raise ConfigError("a strategy is named twice; name each once")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)

    config = shared_config(where.identity(model), tasks, params, seed)
    path = out or new_run_path(Path("runs"), f"{tasks_file.stem}-compare", config)
    facts = where.facts(model, seed)

    async def ask() -> list[Row]:
        opened = where.open(model, parallel=min(64, 16 * concurrency), ledger=Ledger())
        async with opened as endpoint:
            return await compare(
                endpoint, tasks, cells, params, path, model=config["model"], seed=seed,
                concurrency=concurrency, facts=facts, progress=progress_of("answers"),
            )  # fmt: skip

    with RunFolder(path, "comparison", config, facts | {"cells": [c.name for c in cells]}) as run:
        rows = asyncio.run(ask())
        svg = svg_of(_figure(rows)) if has_matplotlib() else None
        write_comparison(path, config, rows, svg)
        run.set_status("success")
    if plot is not None:
        draw(plot, rows)
    if as_json:
        click.echo(json.dumps(rows_json(rows), indent=1))
        return
    click.echo(
        f"{'strategy':<28} {'cap':>7} {'accuracy':>16} {'tokens':>9} {'new':>8} {'calls':>6}"
    )
    for row in rows:
        click.echo(
            f"{row.strategy:<28} {row.cap or '-':>7} {row.accuracy:>8.4f} +-{row.stderr:.4f} "
            f"{row.tokens:>8,.0f} {row.new_tokens:>8,.0f} {row.calls:>6.1f}"
            f"{' *' if row.is_best else ''}"
        )


def draw(path: Path, rows: list[Row]) -> None:
    """Draw accuracy over tokens. Raises ConfigError without matplotlib."""
    require_matplotlib()
    save_picture(path, _figure(rows))


def _figure(rows: list[Row]) -> Figure:
    from matplotlib.figure import Figure

    from capax.scaling.compare_report import family_of

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(family_of(row.strategy) for row in rows):
        own = sorted((r for r in rows if family_of(r.strategy) == family), key=lambda r: r.tokens)
        axes.errorbar(
            [r.tokens for r in own], [r.accuracy for r in own], [r.stderr for r in own],
            fmt="o-", capsize=2, label=family,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("tokens per task, all calls and prompts")
    axes.set_ylabel("share of tasks answered right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    return figure
