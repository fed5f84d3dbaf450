"""Checks that err, the limits they set, and the command that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from capax.cli import main
from capax.errors import ConfigError
from capax.scaling.checkers import checker_named
from capax.scaling.imperfect_verifiers import (
    Attempts,
    VerifierModel,
    ceiling,
    plan,
)
from capax.scaling.limits import judged_twice, kinds_of, limits
from capax.scaling.run_directory import RunDirectory, Sample
from capax.scaling.tasks import read_tasks
from capax.scaling.weak_checks import WEAK


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("mod3", "2859", "2857"),
        ("mod9", "2865", "2859"),
        ("last_digit", "6", "2855"),
        ("last_two_digits", "156", "2866"),
        ("first_digit", "2999", "285"),
    ],
)
def test_weak_checks_pass_some_wrong_answers(name: str, passes: str, fails: str) -> None:
    checker = checker_named(name)
    assert checker.check("2856", "2856")
    assert checker.check(passes, "2856")
    assert not checker.check(fails, "2856")
    for text in ("", "none", "1" * 200, "28.56"):
        assert not checker.check(text, "2856")


@pytest.mark.parametrize(
    ("name", "share"), [("mod3", 0.267), ("mod9", 0.022), ("last_digit", 0.75), ("mod7", None)]
)
def test_single_wrong_digits_slip_through_as_often_as_they_must(
    name: str, share: float | None
) -> None:
    """All four-digit numbers and all ways to get one digit wrong."""
    if share is None:
        assert name not in WEAK
        return
    slipped, tried = 0, 0
    for truth in range(1000, 10_000, 7):
        digits = str(truth)
        for at, old in enumerate(digits):
            for new in "0123456789":
                if new == old or (at == 0 and new == "0"):
                    continue
                tried += 1
                slipped += WEAK[name](int(digits[:at] + new + digits[at + 1 :]), truth)
    assert slipped / tried == pytest.approx(share, abs=0.02)


def independent(n_tasks: int = 40, n: int = 400, seed: int = 0) -> VerifierModel:
    rng = np.random.default_rng(seed)
    strong = rng.random((n_tasks, n)) < rng.random((n_tasks, 1)) * 0.5
    weak = strong | (rng.random((n_tasks, n)) < 0.25)
    return VerifierModel(weak, strong)


def test_kinds_have_the_rates_of_their_tasks() -> None:
    rng = np.random.default_rng(2)
    model = independent()
    picky = VerifierModel(model.weak & (rng.random(model.weak.shape) < 0.8), model.strong)
    for each in (model, picky):
        kinds = kinds_of(each)
        assert kinds.attempts.right == pytest.approx((each.weak & each.strong).mean(1))
        assert kinds.attempts.wrong == pytest.approx((each.weak & ~each.strong).mean(1))


def test_limits_are_those_of_the_rates() -> None:
    model = independent()
    found = limits(model, [0.0, 1.0, 4.0])
    attempts = Attempts((model.weak & model.strong).mean(1), (model.weak & ~model.strong).mean(1))
    assert found["ceiling"]["value"] == pytest.approx(ceiling(attempts).value)
    assert found["soundness"]["value"] == pytest.approx(0.75, abs=0.02)
    rates = list(found["false_positive_rate"].values())
    assert rates[-1] > rates[0]
    for row in found["plans"]:
        assert row["attempts"] == plan(kinds_of(model), row["ratio"]).attempts
    best = [np.inf if r["attempts"] is None else r["attempts"] for r in found["plans"]]
    assert best == sorted(best, reverse=True)  # dearer mistakes never buy more attempts


def run_with(tmp_path: Path, texts: dict[str, list[str]]) -> tuple[Path, Path]:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        "".join(
            json.dumps({"id": i, "prompt": "?", "reference": "12", "checker": "exact"}) + "\n"
            for i in texts
        )
    )
    path = tmp_path / "run"
    with RunDirectory(path, {"seed": 0}) as run:
        for name, made in texts.items():
            run.add_samples(Sample(name, i, 0, 1, 2, "stop", text) for i, text in enumerate(made))
        run.set_status("success", problems=dict.fromkeys(texts, "exact"))
    return path, tasks


def test_the_command_judges_stored_samples_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tasks = run_with(tmp_path, {"a": ["12", "15", "13", "12"], "b": ["9", "x", "12"]})
    command = ["scale", "limits", str(path), str(tasks), "--weak", "mod3", "--strong", "exact"]
    assert main.run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_tasks"], found["n_samples"]) == (2, 3)  # as many as every task has
    assert found["soundness"]["n_hits"] == 2  # 13 and x
    assert found["soundness"]["n_trials"] == 4
    assert main.run(command) == 0
    assert "mod3 rejects 2 of 4 wrong answers" in capsys.readouterr().out


def test_a_check_that_accepts_nothing_has_no_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tasks = run_with(tmp_path, {"a": ["x", "y"]})
    command = ["scale", "limits", str(path), str(tasks), "--weak", "mod3", "--strong", "exact"]
    assert main.run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)  # strict JSON: no NaN
    assert found["ceiling"]["value"] is None
    assert found["completeness"]["value"] is None
    assert main.run(command) == 0
    assert "ceiling       none" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", ["x", "-1", "nan", "inf", ""])
def test_costs_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: str
) -> None:
    path, tasks = run_with(tmp_path, {"a": ["12"]})
    command = ["scale", "limits", str(path), str(tasks), "--weak", "mod3", "--strong", "exact"]
    assert main.run([*command, f"--ratio={ratio}"]) == 1
    assert "--ratio" in capsys.readouterr().err


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    path, tasks = run_with(tmp_path, {"a": ["12"]})
    read = read_tasks(tasks)
    with pytest.raises(ConfigError, match="no checker"):
        judged_twice(path, read, "mod7", "exact")
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "z", "prompt": "?", "reference": "1", "checker": "exact"}\n')
    with pytest.raises(ConfigError, match="samples of none"):
        judged_twice(path, read_tasks(other), "mod3", "exact")
