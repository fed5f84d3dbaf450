"""Pictures of records: one figure as bars, or against another figure or the model's size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capax.errors import ConfigError
from capax.files.picture import require_matplotlib, save_picture
from capax.measuring.records import Record, basis

MAX_BARS = 60
COLORS = ("#2f6f8f", "#c2703d", "#4f8a4b", "#8a5fa8", "#a8323e", "#7a7f86")
LOG_FROM = 30  # values further apart than this factor are drawn on a logarithmic axis
SIZES = {"weights_nbytes": ("weights (MB)", 1e6), "n_params": ("parameters (millions)", 1e6)}


def draw(records: Sequence[Record], figure: str, against: str | None, path: Path) -> None:
    """Write a picture of `figure`; a group of comparable records has one colour.

    Raises ConfigError without matplotlib, for too many bars, or if a record lacks `against`.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(basis(record), sort_keys=True), []).append(record)
    if against is None:
        if len(records) > MAX_BARS:
            raise ConfigError(f"{len(records)} bars are too many to read; choose up to {MAX_BARS}")
        picture = Figure(figsize=(8, 1.2 + 0.36 * len(records)), layout="constrained")
        _bars(picture.subplots(), list(groups.values()), figure)
    else:
        picture = Figure(figsize=(7, 4.4), layout="constrained")
        _points(picture.subplots(), list(groups.values()), figure, against)
    save_picture(path, picture)


def label(record: Record) -> str:
    """Return what tells a record from others: model, methods, data."""
    methods = [str(record.method[k]) for k in ("weights", "kv") if record.method.get(k)]
    data = record.data.name if record.data else ""
    # A dollar sign would begin a formula.
    text = " ".join(part for part in (record.model.name, *methods, data) if part)
    return "".join(c if c.isprintable() else "?" for c in text)[:70].replace("$", r"\$")


def _bars(axes: Any, groups: list[list[Record]], figure: str) -> None:
    row, labels = 0, []
    for number, group in enumerate(groups):
        for record in group:
            f, value = record.figure(figure), _y(record, figure)
            axes.barh(row, value, color=COLORS[number % len(COLORS)])
            if f is not None and f.interval is not None:
                low, high = f.interval
                axes.plot([low, high], [row, row], color="#333", linewidth=1.2)
            axes.text(value, row, f" {value:.4g}", va="center", fontsize=8)
            labels.append(label(record))
            row += 1
    axes.set_yticks(range(row), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(_axis(groups[0][0], figure))
    axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Any, groups: list[list[Record]], figure: str, against: str) -> None:
    for number, group in enumerate(groups):
        color = COLORS[number % len(COLORS)]
        rows = sorted(
            (_x(record, against), _y(record, figure), i) for i, record in enumerate(group)
        )
        data = group[0].data
        name = data.name[:40].replace("$", r"\$") if data else f"group {number + 1}"
        xs, ys, _ = zip(*rows, strict=True)
        axes.plot(xs, ys, "o-", color=color, label=name)
        models = {record.model.name for record in group}
        for x, y, i in rows:
            record = group[i]
            f = record.figure(figure)
            if f is not None and f.interval is not None:
                axes.plot([x, x], f.interval, color=color, linewidth=1.2)
            encoding = record.method.get("encoding") or record.method.get("weights")
            told = encoding if encoding and len(models) == 1 else record.model.name
            axes.annotate(
                str(told)[:24].replace("$", r"\$"),
                (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7,
            )  # fmt: skip
    every_x = [_x(record, against) for group in groups for record in group]
    if min(every_x) > 0 and max(every_x) >= LOG_FROM * min(every_x):
        axes.set_xscale("log")
    axes.set_xlabel(SIZES[against][0] if against in SIZES else against)
    axes.set_ylabel(_axis(groups[0][0], figure))
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _axis(record: Record, figure: str) -> str:
    f = record.figure(figure)
    unit = f" ({f.unit})" if f is not None and f.unit else ""
    return f"{figure}{unit}"


def _y(record: Record, figure: str) -> float:
    f = record.figure(figure)
    if f is None or f.value is None:
        raise ConfigError(f"record {record.id} has no figure {figure!r:.60}")
    return f.value


def _x(record: Record, against: str) -> float:
    if against in SIZES:
        value: float | None = getattr(record.model, against)
    else:
        f = record.figure(against)
        value = None if f is None else f.value
    if value is None:
        raise ConfigError(
            f"record {record.id} has no {against!r:.60}; name one of its figures or "
            f"{' or '.join(SIZES)}"
        )
    return value / SIZES[against][1] if against in SIZES else value
