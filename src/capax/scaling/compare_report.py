"""The page of a comparison of strategies: what tokens bought, and at equal tokens.

"Think Deep, Think Fast" (2025, arXiv 2504.14047) compares at equal spent tokens, interpolated in
their logarithm, and sums a frontier up by its area over that logarithm.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from capax.files.page import Table
from capax.files.registry import write_atomically
from capax.files.run_report import write_reports
from capax.scaling.comparing import Cell, Row, as_json
from capax.scaling.strategies.strategy import parse_strategy

N_BUDGETS = 6


def accuracy_at(points: Sequence[tuple[float, float]], tokens: float) -> float | None:
    """Return the accuracy at `tokens` between points (tokens, accuracy), linear in log tokens.

    None outside the points: nothing is said about budgets that were not spent.
    """
    ordered = sorted(points)
    for left, right in pairwise(ordered):
        if left[0] <= tokens <= right[0]:
            if left[0] == right[0]:
                return max(left[1], right[1])
            share = math.log(tokens / left[0]) / math.log(right[0] / left[0])
            return left[1] + share * (right[1] - left[1])
    return next((accuracy for spent, accuracy in ordered if spent == tokens), None)


def frontier_area(rows: Sequence[Row]) -> float:
    """Return the mean, over log tokens, of the best accuracy for at most so many tokens.

    From the cheapest row that took any to the dearest; a single row's is its accuracy.
    """
    ordered = sorted(
        (row for row in rows if row.tokens > 0), key=lambda row: (row.tokens, -row.accuracy)
    )
    if not ordered:
        return 0.0
    best, area = 0.0, 0.0
    for row, after in zip(ordered, [*ordered[1:], None], strict=True):
        best = max(best, row.accuracy)
        if after is not None:
            area += best * math.log(after.tokens / row.tokens)
    width = math.log(ordered[-1].tokens / ordered[0].tokens)
    return area / width if width > 0 else best


def family_of(strategy: str) -> str:
    """Return a strategy's spelling without the counts and cuts that only set its price."""
    name, _, rest = strategy.partition(":")
    kept = [
        part
        for part in rest.split(",")
        if part and part.partition("=")[0] not in ("n", "k", "tokens", "layers", "marks")
    ]
    return ":".join(filter(None, [name, ",".join(kept)]))


def equal_tokens(rows: Sequence[Row]) -> tuple[list[float], dict[str, list[float | None]]]:
    """Return budgets that two families or more span, and what each reaches at them."""
    families: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.tokens > 0:  # else its cap held no answer
            families.setdefault(family_of(row.strategy), []).append((row.tokens, row.accuracy))
    several = {name: points for name, points in families.items() if len(points) > 1}
    if len(several) < 2:
        return [], {}
    low = sorted(min(t for t, _ in points) for points in several.values())[1]
    high = sorted(max(t for t, _ in points) for points in several.values())[-2]
    if low >= high:
        return [], {}
    step = (high / low) ** (1 / (N_BUDGETS - 1))
    budgets = [low, *(low * step**i for i in range(1, N_BUDGETS - 1)), high]
    return budgets, {
        name: [accuracy_at(points, budget) for budget in budgets]
        for name, points in several.items()
    }


def write_comparison(
    folder: Path, config: Mapping[str, Any], rows: Sequence[Row], svg: bytes | None
) -> None:
    """Write compare.json and the reports of a comparison; `config` is what its rows share.

    Raises StoreError if the folder cannot be written.
    """
    content = json.dumps(as_json(rows), indent=1).encode() + b"\n"
    write_atomically(folder / "compare.json", content, 0o644)
    summary = (
        f"{rows[0].n_tasks:,} tasks, {len(rows)} rows; the best accuracy for at most so many "
        f"tokens averages {frontier_area(rows):.1%} over their logarithm."
    )
    write_reports(
        folder, results_of(config, rows), summary, tables_of(rows), config,
        svg=svg, name="compare", alt="accuracy over tokens, by strategy",
    )  # fmt: skip


def results_of(config: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return results.json, where each strategy under each cap is a task."""
    results = {
        Cell(parse_strategy(row.strategy), row.cap).name: {
            "alias": row.strategy,
            "acc,none": row.accuracy,
            "acc_stderr,none": row.stderr,
            "tokens,none": row.tokens,
        }
        for row in rows
    }
    n_tasks = rows[0].n_tasks
    return {
        "results": results,
        "configs": {
            name: {**config, "strategy": row.strategy, "max_total_tokens": row.cap}
            for name, row in zip(results, rows, strict=True)
        },
        "versions": dict.fromkeys(results, 1),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {name: {"acc": True, "tokens": False} for name in results},
        "n-samples": {name: {"original": n_tasks, "effective": n_tasks} for name in results},
    }


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """Return the rows, and what strategies reach at equal tokens where that can be said."""
    best = frozenset(i for i, row in enumerate(rows) if row.is_best)
    tables = [
        Table(
            ("strategy", "cap", "right", "± s.e.", "tokens", "new", "calls"),
            [
                (
                    row.strategy,
                    "" if row.cap is None else f"{row.cap:,}",
                    f"{row.accuracy:.1%}",
                    f"{row.stderr:.1%}",
                    f"{row.tokens:,.0f}",
                    f"{row.new_tokens:,.0f}",
                    f"{row.calls:.1f}",
                )
                for row in rows
            ],
            title="Strategies",
            note="Per task, all calls, prompts included. Bold: no other row is as right with fewer "
            "tokens. Standard errors are over tasks; differences below two of them are noise, "
            "and one of zero says only that all tasks ended alike.",
            best=best,
        )
    ]
    budgets, reached = equal_tokens(rows)
    if budgets:
        tables.append(
            Table(
                ("strategy", *(f"{budget:,.0f}" for budget in budgets)),
                [
                    (name, *("" if x is None else f"{x:.1%}" for x in found))
                    for name, found in reached.items()
                ],
                title="Right at equal tokens",
                note="Interpolated in log tokens between the rows above; empty where a strategy "
                "was not measured.",
            )
        )
    return tables
