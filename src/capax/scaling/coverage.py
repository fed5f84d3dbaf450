"""Coverage: the share of problems that at least one of k samples solves.

"Large Language Monkeys: Scaling Inference Compute with Repeated Sampling" (2024, arXiv 2407.21787).
Draw N samples of each problem and count the C correct ones. Then without bias

    pass@k = mean over problems of 1 - C(N - C, k) / C(N, k)

and over decades of k it is near exp(a * k^b) with a, b < 0. One problem alone follows
1 - (1 - p)^k; the power law comes from the spread of p, so a beta distribution of p, fitted to
few samples by maximum likelihood, forecasts coverage at a k nobody could pay for.

Counts are integers [P]; k counts samples; coverage is between 0 and 1. All P problems count,
also those nobody solved. The paper leaves the space of the fit open: its coefficients are those of
least squares on log coverage; a fit of coverage itself has a smaller absolute error. Ours: exact
variance over samples, and forecasts with bands over which problems happened to be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from capax.errors import ConfigError

Space = Literal["log", "coverage"]
Method = Literal["betabinomial", "powerlaw"]
N_FIT_POINTS = 40
N_ERROR_POINTS = 100
MAX_FORECAST = 10_000_000  # samples; a forecast sums over every one of them


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples and correct samples of each problem, int64 [P] each.

    Raises ConfigError for no problem, no sample, or more correct samples than samples.
    """

    n: np.ndarray
    correct: np.ndarray

    def __post_init__(self) -> None:
        n, correct = np.asarray(self.n), np.asarray(self.correct)
        if n.ndim != 1 or n.shape != correct.shape or not n.size:
            raise ConfigError(f"counts have shapes {n.shape} and {correct.shape}; both must be [P]")
        if n.dtype.kind not in "iu" or correct.dtype.kind not in "iu":
            raise ConfigError("counts must be integers")
        wrong = np.flatnonzero((n < 1) | (correct < 0) | (correct > n))
        if wrong.size:
            at = int(wrong[0])
            raise ConfigError(
                f"problem {at} has {correct[at]} correct of {n[at]} samples; "
                "there must be 0 to n of n >= 1"
            )
        object.__setattr__(self, "n", n.astype(np.int64))
        object.__setattr__(self, "correct", correct.astype(np.int64))

    @property
    def n_problems(self) -> int:
        return int(self.n.size)

    @property
    def n_min(self) -> int:
        """The largest k that every problem has samples for."""
        return int(self.n.min())

    def take(self, problems: np.ndarray) -> Counts:
        """Return the counts of these problems; one may come more than once."""
        return Counts(self.n[problems], self.correct[problems])


# --- the estimator ------------------------------------------------------------------------


def pass_at_k(counts: Counts, k: int) -> np.ndarray:
    """Return the chance that k of a problem's samples hold a correct one, float64 [P].

    1 - prod over j = N-C+1..N of (1 - k/j), as a sum of log1p: relative error below 1e-12 where
    log-gamma has 1e-8, exactly 0 for C = 0 and exactly 1 for N - C < k. Raises ConfigError for k
    above the samples of some problem.
    """
    if not 1 <= k <= counts.n_min:
        raise ConfigError(f"k is {k} but must be 1 to {counts.n_min}, the samples of each problem")
    values = np.empty(counts.n_problems)
    for n in np.unique(counts.n):
        # log_miss[c]: log of the chance to miss all of c correct samples, for c <= n - k
        terms = np.log1p(-k / np.arange(n, k, -1, dtype=np.float64))
        log_miss = np.concatenate([[0.0], np.cumsum(terms)])
        here = counts.n == n
        c = counts.correct[here]
        found = -np.expm1(log_miss[np.minimum(c, n - k)])
        values[here] = np.where(c > n - k, 1.0, found)
    return values


def coverage(counts: Counts, ks: Sequence[int]) -> np.ndarray:
    """Return pass@k of the problem set for each k, float64 [K]."""
    return np.array([pass_at_k(counts, k).mean() for k in ks])


def sampling_variance(counts: Counts, k: int) -> float:
    """Return the variance of coverage at k over new samples of the same problems, without bias.

    With g_k = 1 - pass@k of one problem it is g_k^2 - g_2k, so it needs 2k samples: NaN
    beyond, where a curve should be drawn grey. It is 0 for a problem nobody solved.
    """
    if 2 * k > counts.n_min:
        return float("nan")
    miss, miss_twice = 1 - pass_at_k(counts, k), 1 - pass_at_k(counts, 2 * k)
    return float(np.maximum(miss**2 - miss_twice, 0).sum() / counts.n_problems**2)


class Point(NamedTuple):
    """Coverage at k; `stderr` over samples (NaN for 2k > N); 95 % band over problems."""

    k: int
    coverage: float
    stderr: float
    low: float
    high: float


def curve(
    counts: Counts, ks: Sequence[int], *, resamples: int = 1000, seed: int = 0
) -> list[Point]:
    """Return coverage at each k with both uncertainties."""
    values = np.stack([pass_at_k(counts, k) for k in ks], axis=1)  # [P, K]
    n_problems = counts.n_problems
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), resamples)
    low, high = np.quantile(weights @ values / n_problems, (0.025, 0.975), axis=0)
    return [
        Point(
            k, float(mean), float(np.sqrt(sampling_variance(counts, k))), float(least), float(most)
        )
        for k, mean, least, most in zip(ks, values.mean(0), low, high, strict=True)
    ]


def samples_needed(counts: Counts, target: float) -> int | None:
    """Return the fewest samples per problem that reach a coverage; None if all of them do not."""
    if not 0 < target <= 1:
        raise ConfigError(f"the coverage to reach is {target} but must be above 0 and at most 1")
    low, high = 1, counts.n_min
    if pass_at_k(counts, high).mean() < target:
        return None
    while low < high:
        middle = (low + high) // 2
        if pass_at_k(counts, middle).mean() >= target:
            high = middle
        else:
            low = middle + 1
    return low


def dispersion(correct: np.ndarray, blocks: np.ndarray) -> float:
    """Return how far successes are from independent between blocks of samples, as a z value.

    correct: bool [P, N] in order of sampling; blocks: int [N], the block of each sample. Sums
    (x - n p)^2 / (n p (1 - p)) over blocks of problems that are solved at times. Repeated seeds or
    coupled batch slots push it far from 0.
    """
    names, sizes = np.unique(blocks, return_counts=True)
    hits = np.stack([correct[:, blocks == name].sum(1) for name in names], axis=1)
    p = correct.mean(1, keepdims=True)
    mixed = ((p > 0) & (p < 1)).ravel()
    degrees = int(mixed.sum()) * (len(names) - 1)
    if not degrees:
        return 0.0
    expected = sizes * p[mixed]
    statistic = ((hits[mixed] - expected) ** 2 / (expected * (1 - p[mixed]))).sum()
    return float((statistic - degrees) / np.sqrt(2 * degrees))


# --- the law ------------------------------------------------------------------------------


class PowerLaw(NamedTuple):
    """coverage = exp(a * k^b); mean and sd of the absolute error on 100 points of the curve."""

    a: float
    b: float
    space: Space
    error_mean: float
    error_std: float

    def at(self, ks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the law's coverage at each k."""
        return np.asarray(np.exp(self.a * np.asarray(ks, np.float64) ** self.b))


def log_spaced(n: int, n_points: int) -> list[int]:
    """Return whole numbers from 1 to n, even on a logarithmic axis; duplicates are kept."""
    return [int(k) for k in np.rint(np.geomspace(1, n, n_points))]


def fit_power_law(counts: Counts, space: Space = "log", n_max: int | None = None) -> PowerLaw:
    """Fit the exponentiated power law to coverage at 40 values of k up to n_max, least squares.

    Raises ConfigError where nothing was solved: log coverage is not finite.
    """
    n_max = counts.n_min if n_max is None else n_max
    ks = log_spaced(n_max, N_FIT_POINTS)
    measured = _at_each(counts, ks)
    if not measured[0] > 0:
        raise ConfigError("no sample is correct, so there is no curve to fit; sample more")
    a, b = _least_squares(np.array(ks, np.float64), measured, space)
    points = log_spaced(n_max, N_ERROR_POINTS)
    errors = np.abs(np.exp(a * np.array(points, np.float64) ** b) - _at_each(counts, points))
    return PowerLaw(a, b, space, float(errors.mean()), float(errors.std()))


def _at_each(counts: Counts, ks: Sequence[int]) -> np.ndarray:
    """Return coverage at each k, computing duplicates once."""
    distinct, where = np.unique(ks, return_inverse=True)
    return coverage(counts, [int(k) for k in distinct])[where]


def _least_squares(k: np.ndarray, measured: np.ndarray, space: Space) -> tuple[float, float]:
    """Minimise the squared error of a, b by damped Gauss-Newton (Levenberg, Marquardt)."""
    log_k = np.log(k)
    target = np.log(measured) if space == "log" else measured

    def model(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
        power = np.exp(b * log_k)
        value, slope = a * power, np.stack([power, a * power * log_k], axis=1)
        if space == "log":
            return value, slope
        return np.exp(value), np.exp(value)[:, None] * slope

    parameters = np.array(_first_guess(log_k, measured))
    value, slope = model(*parameters)
    loss, damping = float(((target - value) ** 2).sum()), 1e-3
    for _ in range(500):
        gram = slope.T @ slope
        step = np.linalg.solve(
            gram + damping * np.diag(np.diag(gram)) + 1e-300 * np.eye(2),
            slope.T @ (target - value),
        )
        tried_value, tried_slope = model(*(parameters + step))
        tried = float(((target - tried_value) ** 2).sum())
        if tried <= loss:
            parameters, value, slope = parameters + step, tried_value, tried_slope
            loss, damping = tried, damping / 10
            if np.abs(step).max() < 1e-12:
                break
        else:
            damping *= 10
            if damping > 1e12:
                break
    return float(parameters[0]), float(parameters[1])


def _first_guess(log_k: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return a, b of the line through log(-log coverage), where coverage is below 1."""
    inside = measured < 1
    if np.unique(log_k[inside]).size < 2:
        first = -np.log(min(measured[0], 1 - 1e-9))
        return -float(first), -0.5
    b, log_minus_a = np.polyfit(log_k[inside], np.log(-np.log(measured[inside])), 1)
    return -float(np.exp(log_minus_a)), float(b)


# --- the forecast -------------------------------------------------------------------------


class BetaBinomial(NamedTuple):
    """Problems whose chance per sample follows Beta(alpha, beta)."""

    alpha: float
    beta: float

    def at(self, ks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return 1 - B(alpha, beta + k) / B(alpha, beta) at each k."""
        ks = np.asarray(ks)
        if ks.min() < 1 or ks.max() > MAX_FORECAST:
            raise ConfigError(f"k is {ks.min()} to {ks.max()} but must be 1 to {MAX_FORECAST:,}")
        terms = np.log1p(self.alpha / (self.beta + np.arange(ks.max())))
        return np.asarray(-np.expm1(-np.cumsum(terms)[ks - 1]))


def fit_beta_binomial(counts: Counts) -> BetaBinomial:
    """Fit alpha and beta by maximum likelihood (Newton in their logarithms).

    The likelihood is a sum of logs of alpha + j, beta + j and alpha + beta + j, each as often as
    a problem has more than j correct, wrong or any samples. Without a success, a failure or any
    spread it has its maximum at a border: the fit then stops at exp(+-15). Raises ConfigError if
    nothing was solved.
    """
    if not counts.correct.any():
        raise ConfigError("no sample is correct, so nothing can be forecast; sample more")
    tails = [_tail(x) for x in (counts.correct, counts.n - counts.correct, counts.n)]
    log = np.log(np.array(_moments(counts)))
    loss = _likelihood(tails, log)
    for _ in range(200):
        gradient, hessian = _derivatives(tails, log)
        curved = np.linalg.eigh(hessian)
        # towards the maximum along every axis, also where the surface curves the wrong way
        scale = np.maximum(np.abs(curved.eigenvalues), 1e-9)
        step = curved.eigenvectors @ ((curved.eigenvectors.T @ gradient) / scale)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        while True:
            tried = np.clip(log + step, -15, 15)
            better = _likelihood(tails, tried)
            if better >= loss or np.abs(step).max() < 1e-12:
                break
            step /= 2
        moved = float(np.abs(tried - log).max())
        if better >= loss:
            log, loss = tried, better
        if moved < 1e-10:
            break
    return BetaBinomial(float(np.exp(log[0])), float(np.exp(log[1])))


def _tail(counts: np.ndarray) -> np.ndarray:
    """Return for j = 0, 1, ... how many counts are above j."""
    at_least = np.bincount(counts)[::-1].cumsum()[::-1]
    return np.asarray(at_least[1:])


def _moments(counts: Counts) -> tuple[float, float]:
    """Return a first alpha, beta from mean and variance of the observed rates."""
    rate = counts.correct / counts.n
    mean = min(max(float(rate.mean()), 1e-6), 1 - 1e-6)
    total = mean * (1 - mean) / max(float(rate.var()), 1e-9) - 1
    total = min(max(total, 0.02), 1e4)
    return mean * total, (1 - mean) * total


def _likelihood(tails: list[np.ndarray], log: np.ndarray) -> float:
    alpha, beta = np.exp(log)
    parts = [
        (tail * np.log(offset + np.arange(tail.size))).sum()
        for tail, offset in zip(tails, (alpha, beta, alpha + beta), strict=True)
    ]
    return float(parts[0] + parts[1] - parts[2])


def _derivatives(tails: list[np.ndarray], log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return gradient [2] and Hessian [2, 2] of the log-likelihood by log alpha, log beta."""
    alpha, beta = np.exp(log)
    first, second = [], []
    for tail, offset in zip(tails, (alpha, beta, alpha + beta), strict=True):
        inverse = 1 / (offset + np.arange(tail.size))
        first.append(float(tail @ inverse))
        second.append(float(-(tail @ inverse**2)))
    by = np.array([first[0] - first[2], first[1] - first[2]])
    scale = np.array([alpha, beta])
    hessian = -second[2] * np.outer(scale, scale)
    hessian += np.diag(np.array(second[:2]) * scale**2 + by * scale)
    return by * scale, hessian


class Forecast(NamedTuple):
    """Coverage expected at k, with the 95 % band over which problems were asked."""

    k: int
    coverage: float
    low: float
    high: float


def forecast(
    counts: Counts,
    ks: Sequence[int],
    method: Method = "betabinomial",
    *,
    resamples: int = 200,
    seed: int = 0,
) -> list[Forecast]:
    """Extrapolate coverage to each k from the samples at hand.

    A resample of the problems that solves none counts as coverage 0. Raises ConfigError if the
    samples themselves hold no correct one.
    """
    fit: Callable[[Counts], PowerLaw | BetaBinomial]
    fit = fit_beta_binomial if method == "betabinomial" else fit_power_law
    middle = fit(counts).at(ks)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(ks)))
    for row in drawn:
        again = counts.take(rng.integers(0, counts.n_problems, counts.n_problems))
        if again.correct.any():
            row[:] = fit(again).at(ks)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [
        Forecast(k, float(c), float(least), float(most))
        for k, c, least, most in zip(ks, middle, low, high, strict=True)
    ]
