"""The arithmetic of the runtime benchmark, on times made up from a known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.runtime import (
    DEEP_GRID,
    GRID,
    HELD_OUT,
    bill_figures,
    decode_errors,
    errors,
    stability,
    two_constants,
)
from capax.measuring.idealized_runtime import RuntimeModel, Sample, cells, fit
from capax.measuring.served_log import ServedRequest, bill

TRUTH = RuntimeModel(
    {1: 0.004, 64: 0.02, 128: 0.04, 256: 0.07, 512: 0.15, 1024: 0.4, 2048: 1.0, 4032: 3.0},
    0.002,
    5e-7,
)


def samples(queries: Any, seed: int, factor: float = 1.0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        Sample(p, o, TRUTH.seconds(p, o) * float(1 + 0.002 * rng.normal()) * factor**r, r)
        for p, o in queries
        for r in (0, 1)
        for _ in range(3)
    ]


def test_unseen_queries_are_predicted_better_than_by_two_constants() -> None:
    measured, unseen = cells(samples(GRID, 0)), cells(samples(HELD_OUT, 1))
    assert not set(GRID) & set(HELD_OUT)
    ours = errors(fit(measured).model.seconds, unseen)
    baseline = errors(two_constants(measured), unseen)
    assert ours["median"] < 0.02 < baseline["median"]
    assert len(ours["cells"]) == len(HELD_OUT)


def test_the_cache_term_is_seen_in_the_decode() -> None:
    found = decode_errors(samples(DEEP_GRID, 2))
    assert found["with_kappa"] < 0.02 < found["without"]


def test_rounds_are_judged() -> None:
    assert stability(samples(GRID, 3))["is_stable"]
    judged = stability(samples(GRID, 3, 1.1))
    assert not judged["is_stable"]
    assert judged["differ"] == pytest.approx(0.1, abs=0.02)


def test_the_bills_figures() -> None:
    log = [
        ServedRequest(
            time=float(i), route="/v1/completions", model="m", status=200, calls=1, choices=1,
            prompt_tokens=64, cached_tokens=0, completion_tokens=8, queue_seconds=0.0,
            seconds=1.02 * TRUTH.seconds(64, 8), prefill_seconds=TRUTH.seconds(64, 1),
            decode_seconds=TRUTH.seconds(64, 8) - TRUTH.seconds(64, 1), finish_reason="length",
        )
        for i in range(5)
    ]  # fmt: skip
    found = bill_figures(bill(log, TRUTH))
    assert found["ratio"] == pytest.approx(1 / 1.02)
    assert found["ratio_to_engine"] == pytest.approx(1)
    assert len(found["requests"]) == 5
