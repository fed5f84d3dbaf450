"""Plans from pilots: what to buy, how sure, and what is said when it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.coverage import Counts
from capax.scaling.rethinking import Chains
from capax.scaling.saturation import fit
from capax.scaling.saturation_plan import Budgeter, compare, plan, read_outcomes, threshold_of


def pilot(n_problems: int = 60, n: int = 16) -> Counts:
    rng = np.random.default_rng(0)
    return Counts(np.full(n_problems, n), rng.binomial(n, rng.beta(1, 2, n_problems)))


def test_a_plan_is_json_with_an_interval_around_it() -> None:
    made = plan(pilot(), 0.02, resamples=50, unit_tokens=10)
    assert made.n_star_interval[0] <= made.n_star <= made.n_star_interval[1]
    assert made.expected_tokens == 10 * made.n_star
    assert json.loads(json.dumps(made.to_dict()))["selector"] == "oracle"


def test_a_plan_beyond_its_pilot_says_so() -> None:
    made = plan(pilot(n=8), 0.0005, resamples=20)
    assert any("extrapolated" in warning for warning in made.warnings)
    near = plan(pilot(n=64), 0.05, resamples=20)
    assert not any("extrapolated" in warning for warning in near.warnings)


def test_votes_and_pilots_without_success_are_refused() -> None:
    with pytest.raises(ConfigError, match="vote"):
        plan(pilot(), 0.01, selector="majority")
    with pytest.raises(ConfigError, match="no answer of the pilot is right"):
        plan(Counts(np.array([8]), np.array([0])), 0.01)


def test_chains_report_both_readings() -> None:
    rng = np.random.default_rng(1)
    chains = Chains(rng.random((400, 6)) < 0.3, np.repeat(np.arange(20), 20))
    made = plan(chains, 0.02, model="single", resamples=20)
    assert made.mode == "sequential"
    assert made.p == pytest.approx(0.3, abs=0.04)
    assert made.rounds is not None
    assert made.rounds["ever_right"][-1] > 0.8
    assert made.rounds["last_right"][-1] < 0.4


def test_a_price_is_a_threshold() -> None:
    assert threshold_of(None, 1e-4, 50) == pytest.approx(0.005)
    with pytest.raises(ConfigError, match="either"):
        threshold_of(0.1, 0.1, 1)
    with pytest.raises(ConfigError, match="tokens of a unit"):
        threshold_of(None, 0.1, None)


def test_the_cheaper_of_equal_curves_is_chosen() -> None:
    curve = fit(pilot(), "mixture")
    assert {c.mode for c in compare(curve, curve, (10, 20), [40, 100])} == {"parallel"}
    assert {c.mode for c in compare(curve, curve, (20, 10), [40, 100])} == {"sequential"}


def test_a_budgeter_stops_at_success_and_when_hope_is_gone() -> None:
    budget = Budgeter((1, 1), 0.1)
    assert budget.more == 8  # 1 / (2 + 8) = 0.1
    for left in range(7, -1, -1):
        budget.update(False)
        assert budget.more == left
    solved = Budgeter((1, 1), 0.1)
    solved.update(True)
    assert solved.more == 0
    assert Budgeter((1, 1), 0.001, max_units=5).more == 5


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pilot.jsonl"
    file.write_text('{"id": 1, "outcomes": [true]}\n{"id": 2}\n')
    with pytest.raises(ConfigError, match="line 2 holds no outcomes"):
        read_outcomes(file)


def test_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    file, chains = tmp_path / "pilot.jsonl", tmp_path / "chains.jsonl"
    for path in (file, chains):
        rows = [{"id": i, "outcomes": (rng.random(8) < 0.3).tolist()} for i in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = tmp_path / "curve.png"
    ran = subprocess.run(
        [sys.executable, "-m", "capax", "scale", "plan", str(file), "--eps", "0.02", "--compare",
         str(chains), "--unit-tokens", "5", "--round-tokens", "9", "--plot", str(picture),
         "--json"],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["n_star"] >= 1
    assert len(report["compare"]) == 12
    assert picture.stat().st_size > 5000
