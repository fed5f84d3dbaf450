"""TTSPM (2025, arXiv 2505.20522): closed forms, published counts, and chains known exactly."""

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.coverage import Counts, coverage
from capax.scaling.rethinking import (
    Chains,
    TwoState,
    constancy,
    fit_two_state,
    hazards,
    predict_per_problem,
    predict_pooled,
)
from capax.scaling.saturation import fit, fit_ceiling, gain, n_star, n_tail, refuse_votes
from tests.acceptance.pythia import pythia_counts

MODELS = ("70M", "160M", "410M", "1B", "2.8B", "6.9B", "12B")


def test_the_closed_form_is_what_scanning_finds() -> None:
    rng = np.random.default_rng(0)
    n = np.arange(20_001)
    for _ in range(10_000):
        p, f_max = rng.uniform(1e-3, 0.999), rng.uniform(0.05, 1)
        eps = float(10 ** rng.uniform(-5, -0.5))
        found = n_star(p, eps, f_max)
        assert found == int(np.argmax(gain(n[: found + 2], p, f_max) <= eps))
        if f_max * p <= eps:
            assert found == 0


@pytest.mark.parametrize(
    ("p", "eps", "f_max", "expected"),
    [(0.9, 0.01, 1, 2), (0.5, 0.01, 1, 6), (0.3, 0.01, 1, 10), (0.1, 0.01, 1, 22),
     (0.05, 0.01, 1, 32), (0.02, 0.01, 1, 35), (0.1, 0.005, 0.8, 27), (0, 0.01, 1, 0),
     (1, 0.01, 1, 1), (1, 0.5, 0.4, 0)],
)  # fmt: skip
def test_reference_values(p: float, eps: float, f_max: float, expected: int) -> None:
    assert n_star(p, eps, f_max) == expected


def test_easy_and_hard_problems_both_saturate_early() -> None:
    ps = [i / 1000 for i in range(10, 991)]
    found = [n_star(p, 0.01) for p in ps]
    assert max(found) == 37
    assert [p for p, n in zip(ps, found, strict=True) if n == 37] == [
        i / 1000 for i in range(24, 31)
    ]
    assert all(n <= 3 for p, n in zip(ps, found, strict=True) if p >= 0.8)


def test_the_tail_rule_bounds_what_is_lost() -> None:
    for p in np.linspace(0.01, 0.99, 99):
        n = n_tail(float(p), 0.02)
        assert (1 - p) ** n <= 0.02 < (1 - p) ** (n - 1)
    assert n_tail(0.0, 0.02, cap=32) == n_tail(0.001, 0.02, cap=32) == 32
    assert 0.95 ** n_star(0.05, 0.02) > 0.3  # what the published rule leaves on the table


@pytest.mark.parametrize("p", [0.02, 0.3])
def test_samples_and_absorbing_chains_follow_the_form(p: float) -> None:
    n_trials = 100_000
    rng = np.random.default_rng(1)
    first = rng.geometric(p, n_trials)  # the sample that is right first
    is_right = np.zeros(n_trials, bool)
    for n in range(1, 65):
        is_right |= rng.random(n_trials) < p  # one more round, right answers stay
        expected = 1 - (1 - p) ** n
        error = 3 * np.sqrt(expected * (1 - expected) / n_trials) + 1 / n_trials
        assert abs((first <= n).mean() - expected) <= error
        assert abs(is_right.mean() - expected) <= error


PUBLISHED = {
    0.01: {"12B": (36, 11), "6.9B": (34, 9), "2.8B": (35, 8)},
    0.001: {
        "12B": (134, 137), "6.9B": (156, 141), "2.8B": (147, 135), "1B": (254, 127),
        "410M": (293, 108), "160M": (368, 103), "70M": (0, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("eps", [0.01, 0.001])
def test_published_counts_saturate_where_they_should(model: str, eps: float) -> None:
    counts = pythia_counts()[model]
    found = tuple(fit(counts, kind).saturation(eps) for kind in ("single", "empirical"))
    assert found == PUBLISHED[eps].get(model, (0, 0))


def test_one_chance_for_all_problems_promises_too_much() -> None:
    for model, promised, truth in (("12B", 0.904, 0.483), ("1B", 0.567, 0.274),
                                   ("160M", 0.235, 0.161)):  # fmt: skip
        counts = pythia_counts()[model]
        assert fit(counts, "single").at([100])[0] == pytest.approx(promised, abs=5e-4)
        assert coverage(counts, [100])[0] == pytest.approx(truth, abs=2e-3)
    for counts in pythia_counts().values():
        error = np.abs(fit(counts, "mixture").at([100, 1000]) - coverage(counts, [100, 1000]))
        assert error[0] <= 0.02
        assert error[1] <= 0.03


@pytest.mark.parametrize(
    ("model", "window", "f_max", "tolerance"),
    [("12B", 32, 0.359, 0.01), ("12B", 320, 0.580, 0.02), ("12B", 3200, 0.710, 0.02),
     ("2.8B", 32, 0.309, 0.01), ("2.8B", 320, 0.525, 0.02), ("2.8B", 3200, 0.669, 0.02)],
)  # fmt: skip
def test_the_ceiling_moves_with_its_window(
    model: str, window: int, f_max: float, tolerance: float
) -> None:
    found = fit_ceiling(pythia_counts()[model], window)
    assert found.f_max == pytest.approx(f_max, abs=tolerance)
    # at 3,200 the curve is so flat that half of it gives nearly the same, and no warning
    assert found.moves == (window <= 320)


def test_a_ceiling_that_is_real_does_not_move() -> None:
    # Negative control: half of the problems at one chance, the rest impossible.
    counts = Counts(np.full(100, 3200), np.array([960] * 50 + [0] * 50))
    found = fit_ceiling(counts, 64)
    assert found.f_max == pytest.approx(0.5, abs=0.005)
    assert not found.moves


def halves_statistic(first: np.ndarray, second: np.ndarray, n: int) -> float:
    """z of the two-sample differences of problems with >= 10 successes of both halves."""
    total = first + second
    kept = (total >= 10) & (2 * n - total >= 10)
    pooled = total[kept] / (2 * n)
    squares = (first[kept] - second[kept]) ** 2 / (2 * n * pooled * (1 - pooled))
    return float((squares.sum() - kept.sum()) / np.sqrt(2 * kept.sum()))


def test_halves_of_independent_samples_agree_and_shuffled_problems_do_not() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(0.8, 1.5, 300)
    outcomes = rng.random((300, 400)) < p[:, None]
    first, second = outcomes[:, :200].sum(1), outcomes[:, 200:].sum(1)
    assert abs(halves_statistic(first, second, 200)) < 4
    assert halves_statistic(first, rng.permutation(second), 200) > 50


def simulated(
    q01: np.ndarray, q10: float, n_chains: int, n_rounds: int, rng: np.random.Generator
) -> Chains:
    problems = np.repeat(np.arange(q01.size), n_chains)
    q = q01[problems]
    right = rng.random(q.size) < q
    rounds = [right]
    for _ in range(n_rounds - 1):
        draw = rng.random(q.size)
        right = np.where(right, draw >= q10, draw < q)
        rounds.append(right)
    return Chains(np.stack(rounds, 1), problems)


@pytest.mark.parametrize(("a", "b"), [(4, 16), (1, 4), (0.4, 1.6)])
def test_chains_per_problem_predict_the_other_half(a: float, b: float) -> None:
    rng = np.random.default_rng(3)
    chains = simulated(rng.beta(a, b, 128), 0.08, 64, 16, rng)
    is_fitted = np.arange(chains.problems.size) % 2 == 0
    fitted, judged = chains.take(is_fitted), chains.take(~is_fitted)
    own, pooled = predict_per_problem(fitted, 16), predict_pooled(fitted, 16)

    def errors(predicted: object) -> tuple[float, float]:
        return (
            np.abs(predicted.last_right - judged.last_right())[1:].max(),  # type: ignore[attr-defined]
            np.abs(predicted.ever_right - judged.ever_right())[1:].max(),  # type: ignore[attr-defined]
        )

    assert max(errors(own)) < 0.03
    if a < 4:  # a wide spread of q: one chain for all must be worse
        assert errors(pooled)[0] > errors(own)[0]
    assert errors(pooled)[1] > errors(own)[1]


def test_hazards_count_censored_chains_and_their_test_tells_coins_apart() -> None:
    chains = Chains(np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]]), np.zeros(3, int))
    found = hazards(chains)
    assert found.successes.tolist() == [1, 1, 0]
    assert found.at_risk.tolist() == [3, 2, 1]
    assert found.pooled() == pytest.approx(2 / 6)
    rng = np.random.default_rng(4)
    same = simulated(np.full(1, 0.2), 0.0, 4000, 8, rng)
    assert not constancy(hazards(same)).fails
    first = np.concatenate([rng.random((4000, 1)) < 0.5, same.outcomes], 1)
    mixed = Chains(first, np.zeros(4000, int))
    assert constancy(hazards(mixed)).fails  # round 1 is another coin
    assert not constancy(hazards(mixed), first=2).fails


def test_two_states_are_the_powers_of_their_matrix() -> None:
    chain = TwoState(0.1, 0.3, 0.05)
    state = np.array([0.9, 0.1])
    for t, value in enumerate(chain.last_right(12)):
        assert value == pytest.approx(state[1], abs=1e-12), t
        state = state @ np.array([[0.7, 0.3], [0.05, 0.95]])
    steps = np.abs(np.diff(chain.last_right(100)))
    assert chain.last_saturation(0.01) == int(np.argmax(steps <= 0.01)) + 1
    rng = np.random.default_rng(5)
    found = fit_two_state(simulated(np.full(1, 0.3), 0.05, 20_000, 8, rng))
    assert found.q01 == pytest.approx(0.3, abs=0.01)
    assert found.q10 == pytest.approx(0.05, abs=0.01)


def test_votes_are_refused() -> None:
    refuse_votes("oracle")
    with pytest.raises(ConfigError, match="most frequent answer"):
        refuse_votes("majority")
