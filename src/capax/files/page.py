"""A report as one HTML file that needs nothing else: no script, no font, no picture beside it.

Whatever a run holds is text here: the template escapes it all, and the page's policy lets a browser
load nothing from anywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #d5d9de; --soft: #6b737c; --back: #f5f6f8 }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #9aa3ad; --back: #1d2126 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
p { color: var(--soft); margin: .2rem 0 .8rem; overflow-wrap: anywhere }
img { max-width: 100%; background: #fff; border-radius: 4px }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; unicode-bidi: isolate }
th { background: var(--back); font-weight: 600 }
th:first-child, td:first-child { text-align: left; min-width: 4.5rem; overflow-wrap: anywhere }
.best td { font-weight: 700 }
pre { background: var(--back); padding: .7rem; overflow-x: auto; font-size: .85rem }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% if picture %}<img src="data:image/svg+xml;base64,{{ picture }}" alt="{{ alt }}">
{% endif %}
{% for table in tables %}
{% if table.title %}<h2>{{ table.title }}</h2>
{% endif %}
{% if table.note %}<p>{{ table.note }}</p>
{% endif %}
<div class="wide"><table>
<thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr{% if loop.index0 in table.best %} class="best"{% endif %}>
{%- for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}
<h2>Settings</h2>
<pre>{{ settings }}</pre>
</body>
</html>
"""


@dataclass(frozen=True)
class Table:
    """Cells as text; `best`: numbers of the rows to stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    best: frozenset[int] = frozenset()


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, numbers to the right; what would end a cell is escaped."""
    rule = [":---", *["---:"] * (len(table.head) - 1)]
    rows = [table.head, rule, *table.rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def page(
    title: str, summary: str, tables: Sequence[Table], settings: str,
    *, svg: bytes | None = None, alt: str = "",
) -> str:  # fmt: skip
    """Return the page; `svg` is embedded, `alt` says what it shows."""
    return filled(
        TEMPLATE, title=title, summary=summary, tables=tables, settings=settings, alt=alt,
        picture=None if svg is None else base64.b64encode(svg).decode(),
    )  # fmt: skip


def filled(template: str, **values: Any) -> str:
    """Return a template of ours, a constant, with values that are escaped wherever they stand."""
    from jinja2 import Environment

    return Environment(autoescape=True, trim_blocks=True).from_string(template).render(**values)
