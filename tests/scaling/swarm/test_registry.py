"""Reputations: what is earned, what is capped, and a ledger that shows every alteration."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from capax.errors import CapacityError, FileFormatError, StoreError
from capax.scaling.swarm.bradley_terry import fit
from capax.scaling.swarm.registry import CHALLENGES, NEEDED, Registry
from capax.scaling.swarm.reputation import Record, weight, weights
from capax.scaling.swarm.simulator import simulate_tables

OLD = 30


def record(right: float, wrong: float, rounds: int = OLD, admitted: bool = True) -> Record:
    return Record(right, wrong, rounds, admitted)


def test_a_weight_is_the_log_odds_of_a_cautious_estimate() -> None:
    known = record(90, 10)
    assert known.mean == pytest.approx(92 / 104)
    assert known.reputation < known.mean
    assert weight(0.8) == pytest.approx(math.log(4))
    assert weight(0.4) == 0


def test_who_is_not_admitted_has_no_weight_and_beginners_are_equal() -> None:
    found = weights({"a": Record(is_admitted=True), "b": Record(is_admitted=True), "c": Record()})
    assert found == {"a": 1.0, "b": 1.0, "c": 0.0}


def test_newcomers_share_a_tenth_and_nobody_has_more_than_a_third() -> None:
    judges = {f"old{i}": record(60, 20) for i in range(4)}
    new = {f"new{i}": record(1, 0, rounds=3) for i in range(20)}
    found = weights(judges | new)
    total = sum(found.values())
    assert sum(found[name] for name in new) <= 0.1 * total + 1e-12
    strong = {"star": record(900, 1), **{f"o{i}": record(30, 20) for i in range(5)}}
    found = weights(strong)
    assert found["star"] == pytest.approx(sum(found.values()) / 3)
    two = {"a": record(900, 1), "b": record(900, 1), "c": record(30, 20), "d": record(30, 20)}
    found = weights(two)
    assert max(found.values()) <= sum(found.values()) / 3 + 1e-12


def play(
    accuracy: np.ndarray, seeds: int, rounds: int, gold_every: int, *, reputed: bool
) -> np.ndarray:
    """Return who won rightly, bool [seeds, rounds], and update records from gold questions."""
    rng = np.random.default_rng(0)
    n = len(accuracy)
    records = [{str(k): Record(is_admitted=True) for k in range(n)} for _ in range(seeds)]
    won = np.zeros((seeds, rounds), bool)
    for number in range(rounds):
        quality = rng.random((seeds, 7)) < 0.5
        quality[:, 0], quality[:, 1] = True, False
        tables = simulate_tables(quality, accuracy, seeds, rng)
        given = (
            np.array([list(weights(r).values()) for r in records])
            if reputed
            else np.ones((seeds, n))
        )
        pooled = (tables * given[:, :, None, None]).sum(1)
        best = fit(pooled * n / np.maximum(given.sum(1), 1e-9)[:, None, None]).argmax(1)
        won[:, number] = quality[np.arange(seeds), best]
        is_gold = number % gold_every == gold_every // 2
        decided = quality[:, :, None] & ~quality[:, None, :]
        right = (tables * decided[:, None]).sum((2, 3)) * is_gold
        wrong = (tables.swapaxes(2, 3) * decided[:, None]).sum((2, 3)) * is_gold
        for seed in range(seeds):
            for k in range(n):
                before = records[seed][str(k)]
                records[seed][str(k)] = before.after_round(int(right[seed, k]), int(wrong[seed, k]))
    return won


def test_inverted_judges_cost_little_once_gold_has_shown_them() -> None:
    honest, bad = np.full(10, 0.8), np.array([0.8] * 7 + [0.2] * 3)
    clean = play(honest, 25, 60, 20, reputed=True)[:, 20:].mean()
    reputed = play(bad, 25, 60, 20, reputed=True)[:, 20:].mean()
    equal = play(bad, 25, 60, 20, reputed=False)[:, 20:].mean()
    assert clean - reputed <= 0.02
    assert clean - equal >= 3 * max(clean - reputed, 0.01)


def test_sleepers_end_without_weight() -> None:
    """One bad node as twenty: admitted while it behaves, then inverted."""
    rng = np.random.default_rng(1)
    records = {f"h{i}": record(40, 10) for i in range(8)}
    sleepers = {f"s{i}": Record(is_admitted=True) for i in range(20)}
    for number in range(40):
        found = weights(records | sleepers)
        share = sum(found[name] for name in sleepers) / sum(found.values())
        assert share <= 0.1 + 1e-12
        gold = number % 10 == 5
        for name, before in sleepers.items():
            right = int(rng.binomial(9, 0.1)) if gold else 0
            sleepers[name] = before.after_round(right, 9 - right if gold else 0)
        for name, before in records.items():
            right = int(rng.binomial(9, 0.8)) if gold else 0
            records[name] = before.after_round(right, 9 - right if gold else 0)
    found = weights(records | sleepers)
    assert sum(found[name] for name in sleepers) == 0


def test_a_block_that_agrees_with_itself_gains_nothing() -> None:
    """Four of ten push one wrong answer and are honest otherwise; gold is hidden among the rest."""
    rng = np.random.default_rng(2)
    ahead = 0
    for _ in range(8):
        records = {k: Record(is_admitted=True) for k in range(10)}
        for number in range(60):
            if number % 20 != 10:
                records = {k: r.after_round() for k, r in records.items()}
                continue
            for k in records:
                # Gold of 12 decided pairs: 6 of them with the pushed answer, lost by the block.
                right = int(rng.binomial(6, 0.8)) + (int(rng.binomial(6, 0.8)) if k < 6 else 0)
                records[k] = records[k].after_round(right, 12 - right)
        honest = np.mean([records[k].reputation for k in range(6)])
        block = np.mean([records[k].reputation for k in range(6, 10)])
        ahead += block >= honest
    assert ahead == 0


def test_admission_is_the_binomial_tail_of_items() -> None:
    chances = {0.5: 0.0013, 0.6: 0.016, 0.7: 0.107, 0.8: 0.411, 0.9: 0.867}
    for accuracy, expected in chances.items():
        tail = sum(
            math.comb(CHALLENGES, k) * accuracy**k * (1 - accuracy) ** (CHALLENGES - k)
            for k in range(NEEDED, CHALLENGES + 1)
        )
        assert tail == pytest.approx(expected, abs=6e-4)


def test_attempts_cost_and_are_limited_by_the_day(tmp_path: Path) -> None:
    now = [0.0]
    registry = Registry(tmp_path / "swarm.sqlite", clock=lambda: now[0])
    assert not registry.add_admission("a", 16, 20, 900)
    assert not registry.add_admission("a", 17, 25, 900)
    assert registry.add_admission("a", 17, 20, 900)
    with pytest.raises(CapacityError, match="tomorrow"):
        registry.add_admission("a", 20, 20, 900)
    assert registry.records()["a"].is_admitted
    now[0] = 90_000.0
    registry.check_admission("a")


def test_the_file_gives_the_same_records_again(tmp_path: Path) -> None:
    path = tmp_path / "swarm.sqlite"
    registry = Registry(path)
    registry.add_admission("a", 20, 20, 10)
    for _ in range(25):
        registry.add_round({"a": (5, 1), "b": (0, 3)}, verdicts=[["a", 0, 1, "A"]], tokens=77)
    assert Registry(path).records() == registry.records()
    assert Registry(path).weights() == registry.weights()
    assert registry.audit() == 26
    assert next(iter(list(registry.entries())[1:]))["verdicts"] == [["a", 0, 1, "A"]]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET payload = replace(payload, '[5, 1]', '[6, 1]') WHERE number = 2",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET hash = '00' WHERE number = 1",
        "UPDATE entries SET number = 9 WHERE number = 3",
        "UPDATE entries SET previous = '' WHERE number = 3",
    ],
)
def test_every_alteration_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "swarm.sqlite"
    registry = Registry(path)
    for _ in range(3):
        registry.add_round({"a": (5, 1)})
    store = sqlite3.connect(path)
    store.execute(change)
    store.commit()
    store.close()
    with pytest.raises(FileFormatError, match="altered"):
        registry.audit()
    with pytest.raises(FileFormatError, match="altered"):
        Registry(path)


def test_a_file_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at as one" * 40)
    with pytest.raises(StoreError, match="registry"):
        Registry(path)
