"""Weak verifiers on a model trained here: what `systems/inference-scaling-flaws.md` demands (7-9).

The ladder itself is `benchmarks.verifier_ladder`; its committed figures are held to the statements
here, and a fast part is drawn anew from the committed model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.verifier_ladder import (
    POLICY_KS,
    VERIFIERS,
    answers,
    resampled,
    tasks_of,
    trend_of,
    verdicts,
)
from capax.scaling.imperfect_verifiers import VerifierModel, ceiling

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / "verifier_ladder.json").read_text()
    )
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Answers [20, 256] of the committed model, and the truth."""
    tasks = tasks_of(20)
    model = ROOT / "models" / "arithmetic" / "multiplication.gguf"
    found = answers(model, tasks, tmp_path_factory.mktemp("ladder") / "run", 256)
    return found, np.array([int(task.reference) for task in tasks])


@pytest.mark.parametrize("name", ["modulo 3", "last digit"])
def test_resampling_is_as_right_as_the_closed_form_says(
    drawn: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    """At a finite number of attempts, on samples that gave no rate; one bound of 4.5 errors."""
    found, truth = drawn
    weak, strong = verdicts(found, truth, VERIFIERS[name]), found == truth[:, None]
    assert (weak | ~strong).all()  # complete: what is right passes
    for k in (1, 4, 16):
        assert abs(resampled(weak, strong, k)["z"]) <= 4.5
    assert abs(trend_of(weak, strong)["z"]) < 4
    model = VerifierModel(weak, strong)
    assert strong.mean() < ceiling(model.pools().attempts).value < 1


def test_attempts_out_of_order_would_show(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """Negative control: the same answers, the right ones of each task first."""
    found, truth = drawn
    strong = found == truth[:, None]
    order = np.argsort(~strong, axis=1, kind="stable")
    weak = np.take_along_axis(verdicts(found, truth, VERIFIERS["last digit"]), order, 1)
    assert trend_of(weak, np.take_along_axis(strong, order, 1))["z"] < -4


def test_real_runs_match_the_closed_form_and_have_no_trend(kept: dict[str, Any]) -> None:
    assert {run["k"] for run in kept["policy_runs"]} == set(POLICY_KS)
    assert max(abs(run["z"]) for run in kept["policy_runs"]) <= 4.5
    assert max(abs(run["z"]) for run in kept["trends"]) < 4
    assert sum(run["n_tasks"] for run in kept["trends"]) > 1000


def test_false_positives_rise_with_the_attempt(kept: dict[str, Any]) -> None:
    """For every verifier at first, though modulo 3 falls again where its order breaks."""
    for verifier in kept["verifiers"].values():
        rates = verifier["rows"][-1]["false_positives"]
        assert rates["4"] > rates["1"] + 0.1
    late = kept["verifiers"]["modulo 3"]["rows"][-1]["false_positives"]
    assert late["64"] < late["1"] < late["4"]


def test_ceilings_follow_accuracy_up_the_ladder(kept: dict[str, Any]) -> None:
    assert len(kept["rungs"]) >= 6
    useful = [v for v in kept["verifiers"].values() if v["is_useful"]]
    assert useful
    assert max(v["spearman"] for v in useful) >= 0.7
    for verifier in kept["verifiers"].values():
        assert "spearman" in verifier  # printed for all, whichever way
        for row in verifier["rows"]:
            assert row["completeness"] == 1
            assert row["soundness"]["low"] <= row["soundness"]["value"] <= row["soundness"]["high"]
            assert row["soundness"]["n_trials"] > 10_000
            assert row["ceiling"]["lower"] <= row["ceiling"]["value"] <= row["ceiling"]["upper"]


def test_the_policy_is_as_good_as_the_best_fixed_number_on_held_out_tasks(
    kept: dict[str, Any],
) -> None:
    """At ratio 4, where one attempt beats a hundred by more than two errors; K = 0 is a choice."""
    rows = [row for row in kept["stopping"] if row["ratio"] == 4 and row["one_over_100_errors"] > 2]
    assert len(rows) >= 30
    for row in rows:
        assert set(row["fixed"]) == {"0", "1", "5", "20", "100"}
        assert row["loss_errors"] <= 2
        assert row["reward"] > row["fixed"]["100"]
    assert {row["attempts"] for row in rows} >= {0, 1}
