"""What is written beside a run's samples: results.json, report.md, report.html and a curve.

`results.json` has the shape lm-eval's readers know: `results`, `configs`, `versions`, `n-shot`,
`higher_is_better`, `n-samples`. Everything is made from the files of the run alone, so it can be
made again; each file is replaced atomically.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capax.files.page import Table
from capax.files.run_folder import read_manifest
from capax.files.run_report import write_reports
from capax.scaling.coverage import curve
from capax.scaling.rethinking import Chains
from capax.scaling.rounds import load_chains
from capax.scaling.run_directory import Verdict, read_rows
from capax.scaling.sampling import Outcome, load
from capax.scaling.selection import accuracy_of, majority

DrawCoverage = Callable[[Any, Any], bytes]  # coverage points, votes -> SVG
DrawRounds = Callable[[Chains], bytes]


def write_report(
    path: Path, draw_coverage: DrawCoverage | None = None, draw_rounds: DrawRounds | None = None
) -> dict[str, Any]:
    """Write the reports of a run, and its curve if what draws it is given; returns results.json.

    Raises what `load` does, and StoreError if the directory cannot be written.
    """
    manifest = read_manifest(path)
    if manifest["kind"] == "rounds":
        return _report_rounds(path, manifest, draw_rounds)
    outcome = load(path)
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
    svg = None if draw_coverage is None else draw_coverage(points, votes)
    table = Table(("k", "coverage", "95 % band", "vote"), rows)
    write_reports(
        path, results, summary, [table], manifest["config"], svg=svg, name="coverage",
        alt="coverage and vote by k",
    )  # fmt: skip
    return results


def _report_rounds(path: Path, manifest: dict[str, Any], draw: DrawRounds | None) -> dict[str, Any]:
    chains = load_chains(path)
    groups: dict[str, list[int]] = {}
    for number, checker in enumerate(manifest["problems"].values()):
        groups.setdefault(checker, []).append(number)
    results: dict[str, dict[str, Any]] = {}
    for checker, members in groups.items():
        own = chains.outcomes[np.isin(chains.problems, members)]
        results[checker] = {
            "alias": checker,
            "acc,none": float(own[:, -1].mean()),
            "first,none": float(own[:, 0].mean()),
            "ever_right,none": float(own.any(axis=1).mean()),
        }
    document = _document(path, manifest, results, {name: len(m) for name, m in groups.items()})
    by_round = enumerate(zip(chains.ever_right(), chains.last_right(), strict=True), 1)
    table = Table(
        ("round", "any so far right", "last right"),
        [(f"{number:,}", f"{ever:.4f}", f"{last:.4f}") for number, (ever, last) in by_round],
    )
    summary = (
        f"{len(manifest['problems']):,} problems, {len(chains.outcomes):,} chains of "
        f"{chains.n_rounds:,} rounds; status {manifest['status']}."
    )
    write_reports(
        path, document, summary, [table], manifest["config"],
        svg=None if draw is None else draw(chains), name="rounds",
        alt="any and last answer right by round",
    )  # fmt: skip
    return document


def results_of(
    path: Path, manifest: dict[str, Any], outcome: Outcome, ks: list[int]
) -> dict[str, Any]:
    """Return the contents of results.json; tasks are grouped by checker."""
    problems: dict[str, str] = manifest["problems"]
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
    return _document(path, manifest, results, {name: len(m) for name, m in groups.items()})


def _document(
    path: Path, manifest: dict[str, Any], results: dict[str, Any], n_samples: dict[str, int]
) -> dict[str, Any]:
    """Return results.json of what was found by checker, of so many problems each."""
    versions = {verdict.checker: verdict.version for verdict in read_rows(path, Verdict)}
    return {
        "results": results,
        "configs": dict.fromkeys(results, manifest["config"]),
        "versions": {name: versions.get(name) for name in results},
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {
            name: {
                metric.removesuffix(",none"): True
                for metric in figures
                if metric.endswith(",none") and "stderr" not in metric
            }
            for name, figures in results.items()
        },
        "n-samples": {name: {"original": n, "effective": n} for name, n in n_samples.items()},
    }
