"""What a run's records say: by steps, by length class, by task, and where chains break."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capax.errors import ConfigError
from capax.files.page import Table, markdown_table
from capax.measuring.procbench.hazard import (
    Chain,
    ConstantHazard,
    Survival,
    constant_hazard,
    kaplan_meier,
)
from capax.measuring.procbench.problem import TASKS
from capax.measuring.procbench.record import Record

CLASSES = {"short": range(2, 7), "medium": range(7, 17), "long": range(17, 26)}
N_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """Means over some problems; intervals are 95 %.

    `pa_interval` comes from resampling problems, those of SM and FM are Wilson's. `read`: share of
    answers that could be read, `cut`: that stopped at the limit of tokens, `no_prefix`: with
    PML = 0, `overrun`: right to the end, and then wrongly continued. `pa_per_1000_tokens`: PA for
    what it took, all samples included; None if no token was sampled.
    """

    name: str
    n: int
    pa: float
    pa_interval: tuple[float, float]
    sm: float
    sm_interval: tuple[float, float]
    fm: float
    fm_interval: tuple[float, float]
    read: float
    cut: float
    no_prefix: float
    overrun: float
    pa_per_1000_tokens: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """`unavoidable`: share of problems whose true answer exceeds the limit of tokens, if known.

    `tokens_per_correct_step`: completion tokens for each leading right state; None if there is
    none. Survival and hazard are over all problems together.
    """

    overall: Row
    by_steps: list[Row]
    by_class: list[Row]
    by_task: list[Row]
    survival: list[Survival]
    hazard: ConstantHazard | None
    completion_tokens: int
    tokens_per_correct_step: float | None
    unavoidable: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(records: Sequence[Record], max_new_tokens: int, seed: int = 0) -> Report:
    """Sum up records. Raises ConfigError if there are none."""
    if not records:
        raise ConfigError("no problem was asked; choose more tasks or steps")
    chains = [Chain(min(r.pml, r.steps), r.steps) for r in records]
    tokens = sum(r.completion_tokens for r in records)
    right = sum(r.pml for r in records)
    references = [r.reference_tokens for r in records if r.reference_tokens is not None]
    is_known = len(references) == len(records)
    steps = sorted({r.steps for r in records})
    tasks = [name for name in TASKS if any(r.task == name for r in records)]
    return Report(
        overall=_row("all", records, seed),
        by_steps=[_row(str(s), (r for r in records if r.steps == s), seed) for s in steps],
        by_class=[
            _row(name, (r for r in records if r.steps in span), seed)
            for name, span in CLASSES.items()
            if any(s in span for s in steps)
        ],
        by_task=[_row(name, (r for r in records if r.task == name), seed) for name in tasks],
        survival=kaplan_meier(chains),
        hazard=constant_hazard(chains),
        completion_tokens=tokens,
        tokens_per_correct_step=tokens / right if right else None,
        unavoidable=sum(n > max_new_tokens for n in references) / len(records)
        if is_known
        else None,
    )


def _row(name: str, some: Iterable[Record], seed: int) -> Row:
    records = list(some)
    n = len(records)
    pa = np.array([r.pa for r in records])
    picks = np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))
    low, high = np.quantile(pa[picks].mean(1), (0.025, 0.975))
    n_sm, n_fm = sum(r.sm for r in records), sum(r.fm for r in records)
    right, tokens = math.fsum(r.pa for r in records), sum(r.completion_tokens for r in records)
    return Row(
        name=name,
        n=n,
        pa=right / n,
        pa_interval=(float(low), float(high)),
        sm=n_sm / n,
        sm_interval=wilson(n_sm, n),
        fm=n_fm / n,
        fm_interval=wilson(n_fm, n),
        read=sum(r.is_read for r in records) / n,
        cut=sum(r.is_cut for r in records) / n,
        no_prefix=sum(r.pml == 0 for r in records) / n,
        overrun=sum(r.pml == r.steps and not r.sm for r in records) / n,
        pa_per_1000_tokens=1000 * right / tokens if tokens else None,
    )


def wilson(n_right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of a proportion; 95 % for the default z."""
    share = n_right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (
        max((middle - half) / (1 + z * z / n), 0.0),
        min((middle + half) / (1 + z * z / n), 1.0),
    )


def markdown(report: Report) -> str:
    """Write the report as Markdown tables, in per cent."""
    by_steps, by_task, chains = map(markdown_table, tables(report))
    return "\n\n".join([by_steps, by_task, "\n".join(f"- {f}" for f in facts(report)), chains])


def facts(report: Report) -> list[str]:
    """Return what no table holds: tokens, the answers no limit could save, the hazard."""
    found = [f"completion tokens: {report.completion_tokens:,}"]
    if report.tokens_per_correct_step is not None:
        found.append(f"tokens per correct step: {report.tokens_per_correct_step:.1f}")
    if report.unavoidable is not None:
        found.append(f"true answer longer than the limit: {100 * report.unavoidable:.1f} %")
    if report.hazard is not None:
        found.append(_hazard_line(report.hazard))
    return found


def tables(report: Report) -> tuple[Table, Table, Table]:
    """Return the shares by steps and by task, and where chains break."""
    chains = [
        (f"{s.step}", f"{s.n_at_risk}", f"{s.hazard:.3f}", f"{s.survival:.3f}", f"{s.fraction:.3f}")
        for s in report.survival
    ]
    return (
        _table("steps", [*report.by_steps, *report.by_class, report.overall]),
        _table("task", report.by_task),
        Table(
            ("step", "at risk", "hazard", "survival", "PML >= step"), chains,
            title="Where chains break",
        ),
    )  # fmt: skip


def _hazard_line(hazard: ConstantHazard) -> str:
    r2 = "undefined" if hazard.r2 is None else f"{hazard.r2:.3f}"
    half = "no chain broke" if hazard.half_steps is None else f"{hazard.half_steps:.2f} steps"
    return f"constant hazard: {hazard.hazard:.4f} per step (R2 {r2}); half of chains last: {half}"


def _table(first: str, rows: Sequence[Row]) -> Table:
    shares = [f"{name} % (95 %)" for name in ("PA", "SM", "FM")]
    head = (first, "n", *shares, "PML = 0", "read", "cut", "overrun", "PA/1k tokens")
    cells = [
        (
            row.name,
            f"{row.n}",
            _share(row.pa, row.pa_interval),
            _share(row.sm, row.sm_interval),
            _share(row.fm, row.fm_interval),
            *(f"{100 * x:.1f}" for x in (row.no_prefix, row.read, row.cut, row.overrun)),
            "" if row.pa_per_1000_tokens is None else f"{row.pa_per_1000_tokens:.2f}",
        )
        for row in rows
    ]
    return Table(head, cells, title=f"By {first}")


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
