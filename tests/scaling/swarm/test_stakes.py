"""Deposits: who loses one, who does not, and what becomes of a judge without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capax.scaling.swarm.agreement import agreement
from capax.scaling.swarm.consensus import Comparison
from capax.scaling.swarm.registry import Registry
from capax.scaling.swarm.stakes import BEGIN, Account, lowest, settle

APART = {"a": (9, 1), "b": (8, 2), "c": (9, 1), "odd": (2, 8)}


def verdicts(judge: str, better: tuple[int, ...], n: int = 3) -> list[Comparison]:
    """All pairs in both orders; `better`: the answers, best first."""
    return [
        Comparison(judge, i, j, "A" if better.index(i) < better.index(j) else "B")
        for i in range(n)
        for j in range(n)
        if i != j
    ]


def test_agreement_leaves_the_judge_itself_out() -> None:
    right, wrong = (0, 1, 2), (2, 1, 0)
    made = [c for j in "abcdef" for c in verdicts(j, right)] + verdicts("odd", wrong)
    weights = dict.fromkeys([*"abcdef", "odd"], 1.0)
    found = agreement(["x", "y", "z"], range(3), made, weights)
    assert json.loads(json.dumps(found))["odd"] == [0, 6]
    assert found["a"] == found["b"] == found["c"]
    assert found["a"][1] == 0 < found["a"][0]
    # However much weight it has, its own verdicts are not what it is measured by.
    assert agreement(["x", "y", "z"], range(3), made, weights | {"odd": 99.0})["odd"] == (0, 6)


def test_one_judge_alone_agrees_with_nobody() -> None:
    assert agreement(["x", "y"], range(2), verdicts("a", (0, 1), 2), {"a": 1.0}) == {"a": (0, 0)}


def test_undecided_verdicts_and_answers_that_take_no_part_do_not_count() -> None:
    made = [c for j in "abc" for c in verdicts(j, (0, 1, 2))]
    made += [Comparison("odd", 0, 1, "U"), Comparison("odd", 2, 0, "A")]
    weights = dict.fromkeys(["a", "b", "c", "odd"], 1.0)
    assert agreement(["x", "y", "z"], [0, 1], made, weights)["odd"] == (0, 0)


@pytest.mark.parametrize(
    ("agreed", "low"),
    [
        (APART, {"odd"}),
        (dict.fromkeys("abcd", (5, 5)), set()),  # of one mind
        ({"a": (9, 1), "b": (0, 9)}, set()),  # two: who stands apart?
        ({**dict.fromkeys("abcd", (9, 1)), "x": (0, 5), "y": (0, 5)}, set()),  # a tie for one place
        ({"a": (9, 1), "b": (9, 1), "c": (9, 1), "none": (0, 0)}, set()),
        ({**{f"n{i}": (i, 20 - i) for i in range(20)}}, {"n0", "n1"}),
    ],
)
def test_the_bottom_tenth(agreed: dict[str, tuple[int, int]], low: set[str]) -> None:
    assert lowest(agreed) == low


def test_the_third_low_round_in_a_row_takes_a_deposit() -> None:
    accounts: dict[str, Account] = {}
    balances = []
    for _ in range(7):
        accounts = settle(accounts, APART)
        balances.append(accounts["odd"].balance)
    assert balances == [5, 5, 4, 4, 4, 3, 3]
    assert accounts["a"] == Account()
    for agreed in (APART, APART, dict.fromkeys(APART, (5, 5)), APART, APART):
        accounts = settle(accounts, agreed)
    assert accounts["odd"] == Account(3 - 1, 2)  # the first went on with a low round before it


def test_who_has_no_deposit_left_must_be_admitted_anew(tmp_path: Path) -> None:
    path = tmp_path / "swarm.sqlite"
    registry = Registry(path)
    for name in APART:
        registry.add_admission(name, 20, 20, 10)
    for number in range(3 * BEGIN):
        assert registry.records()["odd"].is_admitted, number
        registry.add_round(dict.fromkeys(APART, (0, 0)), agreement=APART)
    assert not registry.records()["odd"].is_admitted
    assert registry.weights()["odd"] == 0 < registry.weights()["a"]
    assert registry.agreement()["odd"] == (2 * 15, 8 * 15)
    again = Registry(path)
    assert (again.records(), again.accounts()) == (registry.records(), registry.accounts())
    assert again.add_admission("odd", 18, 20, 10)
    assert again.accounts()["odd"] == Account()
    assert again.records()["odd"].is_admitted


def test_agreement_earns_no_weight(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "swarm.sqlite")
    for name in APART:
        registry.add_admission(name, 20, 20, 10)
    for _ in range(12):
        registry.add_round(dict.fromkeys(APART, (0, 0)), agreement=APART)
    assert len(set(registry.weights().values())) == 1
