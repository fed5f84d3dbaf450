"""What `systems/fortytwo.md` demands of the consensus, as its corrections have it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from capax.scaling.swarm.bradley_terry import (
    aggregate,
    bootstrap_share,
    difference_sd,
    fit,
    minorize,
)
from capax.scaling.swarm.pairs import bridges, components, pair_plan
from capax.scaling.swarm.simulator import simulate_tables

NINE = np.array([True] * 3 + [False] * 6)  # of the wrong ones four are the same answer


def test_golden_vectors_of_the_public_client() -> None:
    three = minorize(np.array([[0, 3, 2], [1, 0, 2], [1, 2, 0]]), 1e-10)
    assert three == pytest.approx([1.660462, 0.634363, 0.705175], abs=1e-5)
    assert minorize(np.array([[0, 2.5], [1.5, 0]]), 1e-10) == pytest.approx([1.25, 0.75], abs=1e-5)


def likelihood(theta: np.ndarray, wins: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
    apart = theta[:, None] - theta[None, :]
    value = (wins * np.logaddexp(0, -apart)).sum() + l2 / 2 * (theta**2).sum()
    down = 1 / (1 + np.exp(apart))
    return float(value), -(wins * down).sum(1) + (wins * down).sum(0) + l2 * theta


def test_strengths_maximise_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(3, 13))
        wins = rng.integers(0, 4, (n, n)) * (rng.random((n, n)) < 0.6) + 0.5 * rng.integers(0, 2)
        np.fill_diagonal(wins, 0)
        theta = fit(wins)
        value, gradient = likelihood(theta, wins, 0.01)
        assert np.abs(gradient).max() < 1e-9
        other = minimize(likelihood, np.zeros(n), (wins, 0.01), "L-BFGS-B", True,
                         options={"gtol": 1e-10, "ftol": 1e-15, "maxiter": 5000})  # fmt: skip
        assert value <= other.fun + 1e-9
        assert np.abs(theta - other.x).max() < 1e-3  # its own accuracy; the optimum is unique
        assert abs(theta.sum()) < 1e-9


def test_without_a_penalty_both_procedures_agree() -> None:
    wins = np.array([[0, 3, 2], [1, 0, 2], [1, 2, 0]])
    strength = np.exp(fit(wins, 1e-9))
    assert strength * 3 / strength.sum() == pytest.approx(minorize(wins, 1e-12), abs=1e-6)


def judged(n: int, n_judges: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, (n, n)) * (1 - np.eye(n)) for _ in range(n_judges)]


def test_the_order_of_answers_and_judges_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        n, tables = 7, judged(7, 5, seed)
        answers = [f"answer {i}" for i in range(n)]
        weights = [float(w) for w in rng.random(5)]
        base = aggregate(answers, tables, weights)
        of_answers, of_judges = rng.permutation(n), rng.permutation(5)
        moved = aggregate(
            [answers[i] for i in of_answers],
            [tables[k][np.ix_(of_answers, of_answers)] for k in of_judges],
            [weights[k] for k in of_judges],
        )
        assert (moved.theta == base.theta[of_answers]).all()
        assert [int(of_answers[i]) for i in moved.order] == list(base.order)


def test_a_weight_of_three_is_three_judges() -> None:
    answers, tables = list("abcde"), judged(5, 3, 4)
    heavy = aggregate(answers, tables, [3.0, 1.0, 1.0]).theta
    many = aggregate(answers, [tables[0]] * 3 + tables[1:], [1.0] * 5).theta
    assert np.abs(heavy - many).max() < 1e-8


def test_a_judge_that_prefers_what_it_reads_first_says_nothing() -> None:
    n = 6
    wins = np.zeros((n, n))
    for first, _second in pair_plan(n):
        wins[first, _second] += 1
    ranking = aggregate([f"a{i}" for i in range(n)], [wins])
    assert np.abs(ranking.theta).max() < 1e-12
    again = aggregate([f"a{i}" for i in reversed(range(n))], [wins[::-1, ::-1]])
    assert f"a{ranking.winner}" == f"a{n - 1 - again.winner}"  # by content, not by place


@pytest.mark.parametrize(
    ("n", "asked"), [(2, 4), (3, 6), (4, 10), (5, 12), (7, 18), (9, 24), (35, 102)]
)
def test_the_clients_plan(n: int, asked: int) -> None:
    plan = pair_plan(n, as_client=True)
    assert len(plan) == asked
    assert sorted(plan) == sorted((j, i) for i, j in plan)
    own = pair_plan(n)
    assert len(own) == len(set(own))
    assert set(own) == set(plan)


def test_comparisons_stay_connected_when_some_are_skipped() -> None:
    rng = np.random.default_rng(2)
    broke = 0
    for n in range(2, 80):
        done = [pair for pair in pair_plan(n) if rng.random() > 0.5]
        broke += len(set(components(n, done))) > 1
        whole = done + list(bridges(n, done))
        assert set(components(n, whole)) == {0}
        assert all(i != j for i, j in whole)
    assert broke > 5


@pytest.mark.parametrize(
    ("accuracy", "judges", "share"),
    [(0.5, 1, 0.33), (0.6, 9, 0.845), (0.7, 3, 0.895), (0.7, 9, 0.99), (0.8, 9, 1.0)],
)
def test_a_right_minority_wins_by_quality(accuracy: float, judges: int, share: float) -> None:
    rng = np.random.default_rng(3)
    tables = simulate_tables(NINE, np.full(judges, accuracy), 1000, rng)
    won = fit(tables.sum(1)).argmax(1) < 3
    assert won.mean() == pytest.approx(share, abs=0.04)


def test_an_order_of_its_own_for_each_judge_is_no_worse() -> None:
    rng = np.random.default_rng(4)
    shares = [
        (fit(simulate_tables(NINE, np.full(9, 0.6), 1000, rng, shuffled=s).sum(1)).argmax(1) < 3)
        for s in (True, False)
    ]
    assert shares[0].mean() >= shares[1].mean()


def test_one_judge_is_no_certainty() -> None:
    wins = np.array([[0.0, 2.0], [0.0, 0.0]])
    theta = fit(wins)
    assert theta[0] - theta[1] == pytest.approx(4.48, abs=0.01)
    assert difference_sd(wins, theta, 0, 1) == pytest.approx(6.1, abs=0.1)
    assert bootstrap_share(["a", "b"], [wins], [1.0]) is None
    split = bootstrap_share(["a", "b"], [wins] * 3 + [wins.T] * 2, [1.0] * 5)
    assert split is not None
    assert 0.4 < split < 0.9
