"""Coverage: variance, bands, bisection, borders of the fits."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import ConfigError
from capax.scaling.cost import cost_at_coverage
from capax.scaling.coverage import (
    BetaBinomial,
    Counts,
    PowerLaw,
    coverage,
    curve,
    dispersion,
    fit_beta_binomial,
    fit_power_law,
    forecast,
    log_spaced,
    pass_at_k,
    samples_needed,
    sampling_variance,
)


def counts(n: int, *correct: int) -> Counts:
    return Counts(np.full(len(correct), n), np.array(correct))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=8))
def test_pass_at_1_is_the_rate_and_different_n_are_allowed(pairs: list[tuple[int, int]]) -> None:
    some = Counts(np.array([n for n, _ in pairs]), np.array([min(n, c) for n, c in pairs]))
    assert pass_at_k(some, 1) == pytest.approx(some.correct / some.n, rel=1e-12)
    alone = [pass_at_k(some.take(np.array([i])), some.n_min)[0] for i in range(some.n_problems)]
    assert pass_at_k(some, some.n_min).tolist() == alone


def test_the_variance_is_unbiased() -> None:
    # All outcomes of 6 samples with p = 0.3: the mean of the estimate is the estimator's variance.
    p, n, k = 0.3, 6, 3
    estimates, variances, weights = [], [], []
    for outcome in product((0, 1), repeat=n):
        c = sum(outcome)
        estimates.append(coverage(counts(n, c), [k])[0])
        variances.append(sampling_variance(counts(n, c), k))
        weights.append(p**c * (1 - p) ** (n - c))
    mean = np.average(estimates, weights=weights)
    assert mean == pytest.approx(1 - 0.7**3, abs=1e-12)
    truth = np.average((np.array(estimates) - mean) ** 2, weights=weights)
    assert np.average(variances, weights=weights) == pytest.approx(truth, abs=1e-12)


def test_the_variance_needs_twice_the_samples() -> None:
    assert np.isnan(sampling_variance(counts(10, 3), 6))
    assert sampling_variance(counts(10, 0), 5) == 0


def test_bands_hold_the_curve() -> None:
    points = curve(counts(50, 0, 1, 5, 20, 50), [1, 5, 25, 50])
    for point in points:
        assert point.low <= point.coverage <= point.high
    assert np.isnan(points[-1].stderr)
    assert points[1].stderr > 0
    (alone,) = curve(counts(50, 0, 1, 5, 20, 50), [5])
    assert alone == points[1]  # the same resamples whatever else is asked


def test_samples_needed_is_the_first_k_that_reaches_it() -> None:
    some = counts(500, 1, 3, 40, 0)
    for target in (0.01, 0.3, 0.5, 0.74):
        k = samples_needed(some, target)
        assert k is not None
        assert coverage(some, [k])[0] >= target
        assert k == 1 or coverage(some, [k - 1])[0] < target
    assert samples_needed(some, 0.76) is None
    with pytest.raises(ConfigError, match="above 0"):
        samples_needed(some, 0)


def test_the_weaker_model_can_be_the_cheaper_one() -> None:
    weak, strong = counts(100, 20, 30, 10), counts(100, 60, 70, 0)
    rows = cost_at_coverage(0.6, [("strong", strong, 10.0), ("weak", weak, 0.1)])
    assert [row.name for row in rows] == ["weak", "strong"]
    assert rows[0].samples is not None
    assert rows[0].cost == pytest.approx(rows[0].samples * 0.1 * 3)
    assert cost_at_coverage(0.9, [("strong", strong, 1.0)])[0].cost is None
    with pytest.raises(ConfigError, match="the same ones"):
        cost_at_coverage(0.5, [("a", weak, 1.0), ("b", counts(9, 1), 1.0)])


@pytest.mark.parametrize("space", ["log", "coverage"])
def test_a_curve_that_is_the_law_gives_it_back(space: str) -> None:
    law = PowerLaw(-3.0, -0.4, "log", 0.0, 0.0)
    ks = np.array(log_spaced(1000, 40), np.float64)
    from capax.scaling.coverage import _least_squares

    a, b = _least_squares(ks, law.at(ks), space)  # type: ignore[arg-type]
    assert (a, b) == (pytest.approx(-3.0, rel=1e-6), pytest.approx(-0.4, rel=1e-6))


def test_beta_binomial_finds_what_made_the_counts() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 4.0, 4000)
    n = rng.integers(20, 200, 4000)
    fit = fit_beta_binomial(Counts(n, rng.binomial(n, rates)))
    assert fit.alpha == pytest.approx(0.5, rel=0.1)
    assert fit.beta == pytest.approx(4.0, rel=0.1)


def test_beta_binomial_at_its_borders() -> None:
    same = fit_beta_binomial(counts(40, *[10] * 30))  # no spread: p = 1/4 everywhere
    assert same.at([3])[0] == pytest.approx(1 - 0.75**3, abs=1e-3)
    solved = fit_beta_binomial(counts(40, *[40] * 5))
    assert solved.at([1])[0] > 0.99
    assert BetaBinomial(1.0, 1.0).at([1, 3]) == pytest.approx([1 / 2, 3 / 4])


def test_nothing_solved_forecasts_nothing() -> None:
    for attempt in (fit_beta_binomial, fit_power_law):
        with pytest.raises(ConfigError, match="no sample is correct"):
            attempt(counts(20, 0, 0))
    (point,) = forecast(counts(20, 0, 0, 0, 1), [100], resamples=50)
    assert point.low == 0  # resamples without the solved problem count


def test_dispersion_sees_repeated_streams() -> None:
    rng = np.random.default_rng(1)
    good = rng.random((40, 640)) < rng.random((40, 1))
    blocks = np.arange(640) // 64
    assert abs(dispersion(good, blocks)) < 4
    repeated = np.repeat(good[:, :10], 64, axis=1)  # each block is one sample, 64 times
    assert dispersion(repeated, blocks) > 20
    assert dispersion(np.zeros((3, 640), bool), blocks) == 0


@pytest.mark.parametrize(
    ("n", "correct", "message"),
    [
        ([], [], "shapes"),
        ([5], [6], "6 correct of 5"),
        ([5, 0], [1, 0], "problem 1"),
        ([5], [-1], "-1 correct"),
        ([5.0], [1], "integers"),
    ],
)
def test_impossible_counts_are_refused(n: list[int], correct: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Counts(np.array(n), np.array(correct))


def test_k_beyond_the_samples_is_refused() -> None:
    for k in (0, 11):
        with pytest.raises(ConfigError, match="must be 1 to 10"):
            pass_at_k(counts(10, 1), k)
