"""`capax measure density`: quality per parameter of a table of models, and its growth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capax.cli.options import json_option
from capax.cli.recording import data_of, host_facts, keep, record_folder, record_option

if TYPE_CHECKING:
    from capax.measuring.densing_law import Floats, Ruler


@click.command("density")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--ruler", "ruler_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Ruler that --save-ruler wrote.",
)  # fmt: skip
@click.option(
    "--ladder", type=click.Path(path_type=Path), metavar="FILE",
    help="CSV of reference models: params (non-embedding), tokens, loss.",
)  # fmt: skip
@click.option(
    "--scores", type=click.Path(path_type=Path), metavar="FILE",
    help="CSV of reference checkpoints: loss, score.",
)  # fmt: skip
@click.option("--tokens", type=float, metavar="N", help="Tokens D0 the ruler is read at.")
@click.option("--chance", type=click.FloatRange(0, 1, max_open=True), default=0.0,
              show_default=True, help="Score of guessing.")  # fmt: skip
@click.option("--save-ruler", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the ruler that was fitted.")  # fmt: skip
@click.option("--score", "score_names", multiple=True, default=["score"], show_default=True,
              metavar="NAME", help="Score column, 0 to 1; several are averaged.")  # fmt: skip
@click.option("--draws", type=click.IntRange(0, 10_000), default=100, show_default=True,
              metavar="N", help="Rulers refitted for the intervals.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@record_option
@json_option
def command(
    table: Path,
    ruler_file: Path | None,
    ladder: Path | None,
    scores: Path | None,
    tokens: float | None,
    chance: float,
    save_ruler: Path | None,
    score_names: tuple[str, ...],
    draws: int,
    seed: int,
    record: str | None,
    as_json: bool,
) -> None:
    """Place the models of TABLE on a ruler and fit how fast the densest of them grow.

    TABLE is a CSV file with model, date (YYYY-MM-DD), params and scores; loss, weight_bits and
    active_params may be there too, and a loss is believed before a score. With a column density
    no ruler is needed. Density is the parameters a reference model would need, over those it has.
    """
    from capax.cli.json_files import read_json, write_json
    from capax.errors import ConfigError
    from capax.measuring import densing_law as law
    from capax.measuring.figures import density_figures
    from capax.measuring.records import Model, Record, now, versions

    of_ladder = {"--ladder": ladder, "--scores": scores, "--tokens": tokens}
    given = [name for name, value in of_ladder.items() if value is not None]
    if ruler_file is not None and (given or save_ruler is not None):
        extra = ", ".join(given or ["--save-ruler"])
        raise ConfigError(f"--ruler is a whole ruler; leave out {extra}")
    if 0 < len(given) < 3 or (save_ruler is not None and not given):
        lacking = ", ".join(name for name in of_ladder if name not in given)
        raise ConfigError(
            f"a ruler is fitted from --ladder, --scores and --tokens: {lacking} lacks"
        )
    folder = record_folder(record)
    rows = read_table(table, ("model", "date"))
    ruler: Ruler | None = None
    drawn: Sequence[Ruler] = ()
    if ruler_file is not None:
        ruler = law.Ruler.from_json(read_json(ruler_file))
    elif ladder is not None and scores is not None and tokens is not None:
        points = [row[:3] for row in _numbers(ladder, ("params", "tokens", "loss"))]
        marks = [row[:2] for row in _numbers(scores, ("loss", "score"))]
        ruler = law.Ruler.fit(points, marks, tokens, chance)
        drawn = law.resampled_rulers(ruler, points, marks, draws, seed)
        if save_ruler is not None:
            write_json(save_ruler, ruler.to_json())
    models = [_place(table, i, row, ruler, drawn, score_names) for i, row in enumerate(rows, 2)]
    known = [m for m in models if m["rho"] is not None]
    fronts = law.frontier([m["day"] for m in known], [m["rho"] for m in known])
    for model in models:
        model["is_frontier"] = False
    for model, is_frontier in zip(known, fronts, strict=True):
        model["is_frontier"] = is_frontier
    days, densities = [m["day"] for m in known], [m["rho"] for m in known]
    trend, reason = None, ""
    try:
        trend = law.report(law.fit_trend(days, densities, draws=_draws_of(known), seed=seed))
    except ConfigError as e:
        reason = str(e)
    content = json.dumps([rows, ruler and ruler.to_json()]).encode()
    keep(
        folder,
        Record(
            kind="density",
            time=now(),
            model=Model(name=table.name),
            data=data_of(table, content, len(models)),
            settings={"scores": ",".join(score_names), "chance": chance, "draws": draws},
            seed=seed,
            machine=host_facts(),
            versions=versions(),
            figures=density_figures(models, trend),
        ),
    )
    if as_json:
        shown = [_without_draws(model) for model in models]
        document = {"models": shown, "trend": trend, "ruler": ruler and ruler.to_json()}
        click.echo(json.dumps(document, indent=2))
        return
    _show(models, trend, reason)


def _draws_of(models: Sequence[Mapping[str, Any]]) -> Floats | None:
    """Return [draws, models] of the densities on each ruler that was drawn; None without any.

    A density that the table gives is the same on all. A ruler that cannot place every model cannot
    say how they grow, and is left out.
    """
    import numpy as np

    n_draws = max((len(m.get("draws", ())) for m in models), default=0)
    if not n_draws:
        return None
    drawn = np.array([m.get("draws") or [m["rho"]] * n_draws for m in models]).T
    drawn = drawn[np.all(np.isfinite(drawn) & (drawn > 0), axis=1)]
    return drawn if len(drawn) else None


def _without_draws(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model as JSON has it: an interval without an upper end has null there."""
    from math import isfinite

    shown = {name: value for name, value in model.items() if name != "draws"}
    if shown.get("interval"):
        shown["interval"] = [bound if isfinite(bound) else None for bound in shown["interval"]]
    return shown


def read_table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file. Raises ConfigError for one without the columns needed."""
    import csv
    import io

    from capax.cli.compress import read_bytes
    from capax.errors import ConfigError

    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"{path} is no CSV file in UTF-8 ({e})") from None
    if not rows:
        raise ConfigError(f"{path} has no rows; expected a line of names and one per entry")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; it has {', '.join(rows[0])}")
    return rows


def _numbers(path: Path, names: Sequence[str]) -> list[list[float]]:
    rows = read_table(path, names)
    return [[_number(path, i, row, name) for name in names] for i, row in enumerate(rows, 2)]


def _number(path: Path, line: int, row: Mapping[str, str | None], name: str) -> float:
    from math import isfinite

    from capax.errors import ConfigError

    try:
        value = float(row[name] or "")
        if not isfinite(value):
            raise ValueError
    except (KeyError, ValueError):
        raise ConfigError(f"{path} line {line}: {name} is {row.get(name)!r}, no number") from None
    return value


def _place(
    path: Path,
    line: int,
    row: Mapping[str, str | None],
    ruler: Ruler | None,
    drawn: Sequence[Ruler],
    score_names: Sequence[str],
) -> dict[str, Any]:
    """Return one model with its release day and its density."""
    from dataclasses import asdict
    from datetime import date

    from capax.errors import ConfigError
    from capax.measuring.densing_law import density

    try:
        released = date.fromisoformat((row["date"] or "").strip())
    except ValueError:
        raise ConfigError(
            f"{path} line {line}: date is {row['date']!r}; write it as 2024-12-31"
        ) from None
    model = {"model": row["model"], "date": released.isoformat(), "day": released.toordinal()}

    def optional(name: str) -> float | None:
        return _number(path, line, row, name) if row.get(name) else None

    if row.get("density"):
        rho = _number(path, line, row, "density")
        if rho <= 0:
            raise ConfigError(f"{path} line {line}: density is {rho}; it must be positive")
        return {**model, "rho": rho, "status": "ok"}
    if ruler is None:
        raise ConfigError(
            f"{path} line {line} has no density, and a score is placed by a ruler only: give "
            "--ruler, or --ladder, --scores and --tokens"
        )
    loss = optional("loss")
    score = None
    if loss is None:
        score = sum(_number(path, line, row, name) for name in score_names) / len(score_names)
        if not 0 <= score <= 1:
            raise ConfigError(f"{path} line {line}: score is {score}; scores are from 0 to 1")
    placed = density(
        ruler,
        _number(path, line, row, "params"),
        score,
        loss=loss,
        weight_bits=optional("weight_bits"),
        active_params=optional("active_params"),
        rulers=drawn,
    )
    return {**model, **asdict(placed)}


def _show(models: Sequence[Mapping[str, Any]], trend: Mapping[str, Any] | None, why: str) -> None:
    click.echo(
        f"  {'model':<24} {'released':<10} {'density':>9} {'90 %':>19} {'per point':>9}  note"
    )
    for m in models:
        rho = "-" if m["rho"] is None else f"{m['rho']:.4g}"
        low_high = m.get("interval")
        interval = f"{low_high[0]:.3g} to {low_high[1]:.3g}" if low_high else "-"
        error = m.get("error_per_point")
        amplified = f"{error:.1%}" if error is not None else "-"
        mark = "*" if m["is_frontier"] else " "
        note = "" if m["status"] == "ok" else m["status"]
        line = (
            f"{mark} {m['model'] or '':<24.24} {m['date']:<10} {rho:>9} {interval:>19} "
            f"{amplified:>9}  {note}"
        )
        click.echo(line.rstrip())
    click.echo("* densest at its release; per point: change of density per 1 % of score")
    click.echo("")
    if trend is None:
        click.echo(f"no trend: {why}")
        return
    low, high = trend["growth_interval"]
    short, long = trend["doubling_days_interval"]
    verdict = "" if trend["is_law"] else ": no more than a running maximum shows by itself"
    rows = [
        ("growth", f"{trend['growth']:.6f} per day (95 % {low:.6f} to {high:.6f})"),
        ("doubling", f"{trend['doubling_days']:.1f} days (95 % {short:.1f} to {long:.1f})"),
        ("R2", f"{trend['r2']:.4f}"),
        ("p", f"{trend['p_value']:.4f} with dates shuffled{verdict}"),
        ("all models", f"{trend['growth_of_all']:.6f} per day"),
    ]
    for name, value in rows:
        click.echo(f"{name:<10} {value}")
