"""The reports of a run: results.json, report.md, report.html, each replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capax.errors import StoreError
from capax.files.page import Table, markdown_table, page
from capax.files.registry import write_atomically


def write_reports(
    path: Path, results: Mapping[str, Any], summary: str, tables: Sequence[Table],
    config: Mapping[str, Any], *, svg: bytes | None = None, name: str = "curve", alt: str = "",
) -> None:  # fmt: skip
    """Write a run's reports into its folder, the picture as plots/<name>.svg as well.

    `results`: as lm-eval's readers know them. `alt` says what the picture shows. Raises StoreError
    if the folder cannot be written.
    """
    shown = json.dumps(config, indent=1, ensure_ascii=False)
    parts = [
        f"## {table.title}\n\n{markdown_table(table)}" if table.title else markdown_table(table)
        for table in tables
    ]
    picture = [] if svg is None else [f"![{alt}](plots/{name}.svg)"]
    text = "\n\n".join([f"# {path.name}", summary, *picture, *parts, f"```json\n{shown}\n```"])
    made = page(path.name, summary, tables, shown, svg=svg, alt=alt)
    documents = {
        "results.json": json.dumps(results, indent=1).encode() + b"\n",
        "report.md": text.encode() + b"\n",
        "report.html": made.encode(),
    }
    if svg is not None:
        try:
            (path / "plots").mkdir(exist_ok=True)
        except OSError as e:
            raise StoreError(f"{path / 'plots'} cannot be made: {e.strerror}") from None
        documents[f"plots/{name}.svg"] = svg
    for file, content in documents.items():
        write_atomically(path / file, content, 0o644)
