"""A page of records: one HTML file without scripts, comparable records in one table, best first.

Whatever a record holds is text here: the template escapes it all, and names of any length or
script stay inside their cell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from capax.files.page import filled
from capax.measuring.records import Figure, Record, basis

MAX_COLUMNS = 7

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark;
  --line: #d5d9de; --soft: #6b737c; --bar: #2f6f8f; --back: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4048; --soft: #9aa3ad; --bar: #6fb1d1; --back: #1d2126 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .2rem }
p, small { color: var(--soft); margin: .2rem 0 .6rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; unicode-bidi: isolate }
th { background: var(--back); font-weight: 600 }
th:first-child, td:first-child { text-align: left; max-width: 22rem; overflow-wrap: anywhere }
.bar { height: 4px; background: var(--bar); margin: .25rem 0 0 auto; border-radius: 2px }
.best { font-weight: 700 }
.interval, .of { display: block; color: var(--soft); font-size: .8rem; font-weight: 400 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ n }} record{{ '' if n == 1 else 's' }} in {{ groups | length }}
group{{ '' if groups | length == 1 else 's' }}. Records of one group have the same kind, data,
settings and seed; figures of different groups are not comparable. Intervals are of 95 % unless said
otherwise.</p>
{% for group in groups %}
<section>
<h2>{{ group.kind }}{% if group.data %} &mdash; {{ group.data }}{% endif %}</h2>
<p>{{ group.settings }}</p>
<div class="wide"><table>
<thead><tr><th>model</th>{% for c in group.columns %}<th>{{ c.name }}
<span class="of">{{ c.unit }}{% if c.arrow %} {{ c.arrow }}{% endif %}</span></th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in group.rows %}<tr><td>{{ row.name }}<span class="of">{{ row.about }}</span></td>
{% for cell in row.cells %}<td{% if cell.is_best %} class="best"{% endif %}>{{ cell.text }}
{%- if cell.interval %}<span class="interval">{{ cell.interval }}</span>{% endif %}
{%- if cell.share is not none %}<div class="bar" style="width: {{ cell.share }}%"></div>{% endif %}
</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% if group.hidden %}<p>Not shown: {{ group.hidden }}</p>{% endif %}
</section>
{% else %}<p>There are no records yet.</p>
{% endfor %}
</body>
</html>
"""


class Column(NamedTuple):
    """A figure of a group."""

    name: str
    unit: str
    arrow: str


class Cell(NamedTuple):
    """One figure of one record; `share`: per cent of the largest of the column, for the bar."""

    text: str
    interval: str
    share: int | None
    is_best: bool


class Line(NamedTuple):
    """One record."""

    name: str
    about: str
    cells: list[Cell]


class Group(NamedTuple):
    """Comparable records."""

    kind: str
    data: str
    settings: str
    columns: list[Column]
    rows: list[Line]
    hidden: str


def page(records: Sequence[Record], title: str) -> str:
    """Return the page of records. Of records of one model and machine the latest counts."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(basis(record), sort_keys=True), []).append(record)
    shown = [_group(group) for group in groups.values()]
    return filled(TEMPLATE, title=title, n=len(records), groups=shown)


def _group(records: Sequence[Record]) -> Group:
    latest = list({_identity(record): record for record in records}.values())
    names = list(dict.fromkeys(f.name for record in latest for f in record.figures))
    shown, hidden = names[:MAX_COLUMNS], names[MAX_COLUMNS:]
    columns = [_column(name, latest) for name in shown]
    cells = {name: _cells(name, latest) for name in shown}
    order = _ranking(latest, shown[0]) if shown else range(len(latest))
    first = latest[0]
    settings = [f"{name} {value}" for name, value in first.settings.items() if value is not None]
    if first.seed is not None:
        settings.append(f"seed {first.seed}")
    if first.data is not None:
        settings.append(f"data sha256 {first.data.digest[:16]}")
    return Group(
        kind=first.kind,
        data=first.data.name if first.data else "",
        settings=", ".join(settings),
        columns=columns,
        rows=[_line(latest[i], [cells[name][i] for name in shown]) for i in order],
        hidden=", ".join(hidden),
    )


def _identity(record: Record) -> str:
    return json.dumps([record.model.digest or record.model.name, record.method, record.machine],
                      sort_keys=True)  # fmt: skip


def _column(name: str, records: Sequence[Record]) -> Column:
    figure = next(f for f in (record.figure(name) for record in records) if f is not None)
    arrow = {True: "↑", False: "↓", None: ""}[figure.higher_is_better]
    return Column(name, figure.unit, arrow)


def _ranking(records: Sequence[Record], name: str) -> list[int]:
    """Return the records' indices, best first by this figure; without a value last."""

    def key(i: int) -> tuple[bool, float]:
        figure = records[i].figure(name)
        if figure is None or figure.value is None:
            return True, 0.0
        return False, -figure.value if figure.higher_is_better else figure.value

    return sorted(range(len(records)), key=key)


def _cells(name: str, records: Sequence[Record]) -> list[Cell]:
    figures = [record.figure(name) for record in records]
    values = [f.value for f in figures if f is not None and f.value is not None]
    most = max((abs(v) for v in values), default=0.0)
    better = next((f.higher_is_better for f in figures if f is not None), None)
    best = None if better is None or len(values) < 2 else (max if better else min)(values)
    return [_cell(figure, most, best) for figure in figures]


def _cell(figure: Figure | None, most: float, best: float | None) -> Cell:
    if figure is None:
        return Cell("", "", None, False)
    if figure.value is None:
        return Cell("none", figure.note, None, False)
    interval = ""
    if figure.interval is not None:
        interval = f"{figure.interval[0]:.4g} to {figure.interval[1]:.4g}"
    if figure.peer is not None:
        interval += f" {figure.peer.name}: {figure.peer.value:.4g}"
    share = round(100 * abs(figure.value) / most) if most else None
    return Cell(f"{figure.value:,.5g}", interval.strip(), share, figure.value == best)


def _line(record: Record, cells: list[Cell]) -> Line:
    facts: list[Any] = [f"{name} {value}" for name, value in record.method.items() if value]
    if record.model.weights_nbytes is not None:
        facts.append(f"{record.model.weights_nbytes / 1e6:,.1f} MB")
    if any(figure.of_machine for figure in record.figures):
        facts += [f"{record.machine[k]}" for k in ("cpu", "isa") if record.machine.get(k)]
        if record.machine.get("threads"):
            facts.append(f"{record.machine['threads']} threads")
    facts += [record.time[:10], record.id]
    return Line(record.model.name, " · ".join(map(str, facts)), cells)
