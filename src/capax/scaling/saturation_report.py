"""The page of a plan: how much to buy, what it rests on, and at which budgets what wins."""

from __future__ import annotations

import json
from collections.abc import Sequence

from capax.files.page import Table, page
from capax.scaling.coverage import Counts, coverage
from capax.scaling.rethinking import Chains
from capax.scaling.saturation import MODELS, fit
from capax.scaling.saturation_plan import Chosen, Plan, rounds_at_risk


def plan_page(
    pilot: str, data: Counts | Chains, made: Plan, rows: Sequence[Chosen], svg: bytes | None
) -> str:
    """Return the page of a plan made from `data`; `rows`: samples against rounds by budget."""
    unit = "samples" if made.mode == "parallel" else "rounds"
    low, high = made.n_star_interval
    summary = (
        f"Buy {made.n_star:,} {unit} for each problem (5-95 %: {low:,} to {high:,}), if one more "
        f"is to bring {made.eps:g} at least. A problem counts as solved if any of them is right."
    )
    of = made.n_star_per_problem
    facts = [
        ("expected accuracy", f"{made.expected_accuracy:.2%}, by selector {made.selector}"),
        ("ceiling", f"{made.f_max:.2%}"),
        (
            "per problem",
            f"10 %: {of['p10']:g}, median {of['median']:g}, 90 %: {of['p90']:g} {unit}",
        ),
        ("spread of chances", made.model),
        ("rule", made.rule),
    ]
    if made.expected_tokens is not None:
        facts.insert(1, ("expected tokens", f"{made.expected_tokens:,.0f} for each problem"))
    if made.expected_seconds is not None:
        facts.append(("expected seconds", f"{made.expected_seconds:,.3g} for each problem"))
    if made.rounds is not None:
        two = made.rounds["two_state"]
        facts.append(("a wrong answer is corrected", f"{two['q01']:.1%} of rounds"))
        facts.append(("a right answer is broken", f"{two['q10']:.1%} of rounds"))
    tables = [Table(("", "plan"), facts), _fits(data, unit)]
    if made.warnings:
        tables.append(Table(("warning",), [(w,) for w in made.warnings], title="Warnings"))
    if rows:
        tables.append(
            Table(
                ("tokens", "samples", "rounds", "better"),
                [
                    (f"{r.tokens:,.0f}", f"{r.parallel:.2%}", f"{r.sequential:.2%}", r.mode)
                    for r in rows
                ],
                title="Samples or rounds",
                note="Expected share of problems solved at each budget.",
            )
        )
    settings = {"mode": made.mode, "eps": made.eps, "rule": made.rule, "model": made.model}
    return page(
        f"Plan from {pilot}", summary, tables, json.dumps(settings, indent=1), svg=svg,
        alt=f"share of problems solved over {unit}, measured and fitted",
    )  # fmt: skip


def _fits(data: Counts | Chains, unit: str) -> Table:
    """Measured shares of the pilot beside what each model makes of them."""
    if isinstance(data, Counts):
        counts, n_seen = data, data.n_min
    else:
        counts, n_seen = rounds_at_risk(data), data.n_rounds
    ks = sorted({1 << i for i in range(n_seen.bit_length())} | {n_seen})
    every = range(1, n_seen + 1)
    seen = coverage(data, every) if isinstance(data, Counts) else data.ever_right()
    fitted = {name: fit(counts, name).at(ks) for name in MODELS}
    return Table(
        (unit, "measured", *fitted),
        [
            (
                f"{k:,}",
                f"{float(seen[k - 1]):.2%}",
                *(f"{float(x[i]):.2%}" for x in fitted.values()),
            )
            for i, k in enumerate(ks)
        ],
        title="The pilot and its fits",
    )
