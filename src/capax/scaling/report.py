"""What is written beside a run's samples: results.json, report.md, report.html and a curve.

`results.json` has the shape lm-eval's readers know: `results`, `configs`, `versions`, `n-shot`,
`higher_is_better`, `n-samples`. Everything is made from the files of the run alone, so it can be
made again; each file is replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capax.errors import StoreError
from capax.files.page import Table, markdown_table, page
from capax.files.registry import write_atomically
from capax.files.run_folder import read_manifest
from capax.scaling.coverage import curve
from capax.scaling.run_directory import Verdict, read_rows
from capax.scaling.sampling import Outcome, load
from capax.scaling.selection import accuracy_of, majority

Draw = Callable[[Path, Any, Any], None]  # file, coverage points, votes


def write_report(path: Path, draw: Draw | None = None) -> dict[str, Any]:
    """Write the reports of a run, and its curve if `draw` is given; returns results.json.

    Raises what `load` does, and StoreError if the directory cannot be written.
    """
    manifest, outcome = read_manifest(path), load(path)
    k_max = outcome.counts.n_min
    ks = sorted({1 << i for i in range(k_max.bit_length())} | {k_max})
    points, votes = curve(outcome.counts, ks), accuracy_of(majority, outcome.answers, ks)
    results = results_of(path, manifest, outcome, ks)
    summary = (
        f"{outcome.counts.n_problems:,} problems, {int(outcome.counts.n.sum()):,} samples, "
        f"{outcome.distinct_texts:.1%} distinct; status {manifest['status']}."
    )
    rows = [
        (f"{p.k:,}", f"{p.coverage:.4f}", f"{p.low:.4f}-{p.high:.4f}", f"{v.accuracy:.4f}")
        for p, v in zip(points, votes, strict=True)
    ]
    settings = json.dumps(manifest["settings"], indent=1)
    svg = None
    if draw is not None:
        _make_directory(path / "plots")
        draw(path / "plots" / "coverage.svg", points, votes)
        svg = (path / "plots" / "coverage.svg").read_bytes()
    table = Table(("k", "coverage", "95 % band", "vote"), rows)
    markdown = (
        f"# {path.name}\n\n{summary}\n\n{markdown_table(table)}\n\n```json\n{settings}\n```\n"
    )
    made = page(path.name, summary, [table], settings, svg=svg, alt="coverage and vote by k")
    for name, text in (
        ("results.json", json.dumps(results, indent=1) + "\n"),
        ("report.md", markdown),
        ("report.html", made),
    ):
        write_atomically(path / name, text.encode(), 0o644)
    return results


def results_of(
    path: Path, manifest: dict[str, Any], outcome: Outcome, ks: list[int]
) -> dict[str, Any]:
    """Return the contents of results.json; tasks are grouped by checker."""
    problems: dict[str, str] = manifest["problems"]
    versions = {verdict.checker: verdict.version for verdict in read_rows(path, Verdict)}
    at = {name: i for i, name in enumerate(outcome.problem_ids)}
    groups: dict[str, list[int]] = {}
    for name, checker in problems.items():
        groups.setdefault(checker, []).append(at[name])
    rates = outcome.counts.correct / outcome.counts.n
    results: dict[str, dict[str, Any]] = {}
    for checker, members in groups.items():
        which = np.array(members)
        counts = type(outcome.counts)(outcome.counts.n[which], outcome.counts.correct[which])
        figures: dict[str, Any] = {"alias": checker, "acc,none": float(rates[which].mean())}
        if which.size > 1:
            figures["acc_stderr,none"] = float(rates[which].std(ddof=1) / np.sqrt(which.size))
        for point in curve(counts, ks):
            figures[f"pass@{point.k},none"] = point.coverage
        results[checker] = figures
    return {
        "results": results,
        "configs": dict.fromkeys(results, manifest["settings"]),
        "versions": {name: versions.get(name) for name in results},
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {
            name: {metric.split(",")[0]: True for metric in figures if "stderr" not in metric}
            for name, figures in results.items()
        },
        "n-samples": {
            name: {"original": len(members), "effective": len(members)}
            for name, members in groups.items()
        },
    }


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as e:
        raise StoreError(f"{path} cannot be made: {e.strerror}") from None
