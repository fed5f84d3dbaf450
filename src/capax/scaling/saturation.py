"""Saturation: the number of samples or rounds after which one more is not worth its price.

"Scaling over Scaling" (TTSPM, 2025, arXiv 2505.20522). A sample is right with chance p; a round of
rethinking leaves the wrong state with chance p. Either way, with a ceiling F_max,

    F(N) = F_max (1 - (1 - p)^N),    F(N + 1) - F(N) = F_max p (1 - p)^N

and N* is the smallest N whose next unit gains at most eps. Problems differ in p: "single" is the
published form at the mean p and promises too much for a set, "mixture" draws p from a beta
distribution, "empirical" averages over the problems' own p, estimated as (c + 1/2) / (n + 1).
Ours: the rule `tail`, intervals over problems, the warnings, and F_max = 1 unless a curve is
fitted, because a fitted F_max is a property of its window and not of the model.

Curves are of oracle selection (any right sample counts). A majority vote does not follow them:
`refuse_votes` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from capax.errors import ConfigError
from capax.scaling.coverage import BetaBinomial, Counts, coverage, fit_beta_binomial

Model = Literal["single", "mixture", "empirical"]
Rule = Literal["gain", "tail"]
MODELS: tuple[Model, ...] = ("single", "mixture", "empirical")
MAX_UNITS = 1_000_000  # samples or rounds; beyond, an answer is that it never saturates
WINDOW_MOVES = 0.1  # relative change of F_max on half the window that deserves a warning


# --- one coin -----------------------------------------------------------------------------


def gain(n: int | np.ndarray, p: float, f_max: float = 1.0) -> np.ndarray:
    """Return what unit n + 1 adds: f_max p (1 - p)^n."""
    return np.asarray(f_max * p * np.power(1.0 - p, n))


def n_star(p: float, eps: float, f_max: float = 1.0) -> int:
    """Return the smallest n whose next unit gains at most eps; 0 if the first one does not pay.

    p = 1 gives 1 (or 0), p = 0 gives 0. Raises ConfigError for values outside their ranges.
    """
    _check(p, eps, f_max)
    if f_max * p <= eps:
        return 0
    if p == 1:
        return 1
    n = max(math.ceil(math.log(eps / (f_max * p)) / math.log1p(-p)), 1)
    # the logarithms round: the definition decides between neighbours
    while n > 1 and gain(n - 1, p, f_max) <= eps:
        n -= 1
    while gain(n, p, f_max) > eps:
        n += 1
    return n


def n_tail(p: float, delta: float, f_max: float = 1.0, cap: int = MAX_UNITS) -> int:
    """Return the smallest n that leaves at most delta on the table, f_max (1 - p)^n <= delta.

    At most `cap`, which is the answer for p = 0 too.
    """
    _check(p, delta, f_max)
    if f_max <= delta:
        return 0
    if p == 0:
        return cap
    if p == 1:
        return min(1, cap)
    n = math.ceil(math.log(delta / f_max) / math.log1p(-p))
    if n >= cap:
        return cap
    while n > 1 and f_max * (1 - p) ** (n - 1) <= delta:
        n -= 1
    while f_max * (1 - p) ** n > delta:
        n += 1
    return min(n, cap)


def _check(p: float, eps: float, f_max: float) -> None:
    for name, value, low in (("p", p, 0.0), ("f_max", f_max, 0.0)):
        if not low <= value <= 1:
            raise ConfigError(f"{name} is {value!r} but must be 0 to 1")
    if not 0 < eps <= 1:
        raise ConfigError(f"the threshold is {eps!r} but must be above 0 and at most 1")


def jeffreys(counts: Counts) -> np.ndarray:
    """Return (c + 1/2) / (n + 1) of each problem, float64 [P]."""
    return np.asarray((counts.correct + 0.5) / (counts.n + 1))


# --- a set of problems --------------------------------------------------------------------


class Curve(NamedTuple):
    """A fitted curve of a set. `p`: one chance (single), one per problem (empirical), or none.

    `beta`: of the mixture. `f_max` multiplies all of it.
    """

    model: Model
    f_max: float
    p: np.ndarray
    beta: BetaBinomial | None

    def at(self, ns: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return F at each n >= 1, float64 [N]."""
        ns = np.asarray(ns)
        if self.beta is not None:
            return np.asarray(self.f_max * self.beta.at(ns))
        return np.asarray(
            self.f_max * np.array([1 - np.power(1 - self.p, n).mean() for n in ns.tolist()])
        )

    def gain_after(self, n: int) -> float:
        """Return F(n + 1) - F(n), n >= 0."""
        if self.beta is None:
            return float(self.f_max * (self.p * np.power(1 - self.p, n)).mean())
        a, b = self.beta
        log = (
            math.lgamma(a + 1) + math.lgamma(b + n) - math.lgamma(a + b + n + 1)
            - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
        )  # fmt: skip
        return self.f_max * math.exp(log)

    def tail_after(self, n: int) -> float:
        """Return F(infinity) - F(n)."""
        return self.f_max - (float(self.at([n])[0]) if n else 0.0)

    def saturation(self, threshold: float, rule: Rule = "gain") -> int:
        """Return the first n whose next unit gains (or whose rest is) at most `threshold`.

        Both fall with n, so it is found by bisection; MAX_UNITS if it lies beyond.
        """
        _check(0.0, threshold, self.f_max)
        left = self.gain_after if rule == "gain" else self.tail_after
        return first_at_most(left, threshold)


def first_at_most(left: Callable[[int], float], threshold: float, cap: int = MAX_UNITS) -> int:
    """Return the smallest n in 0..cap with left(n) <= threshold, for a falling `left`."""
    if left(0) <= threshold:
        return 0
    low, high = 0, 1
    while high < cap and left(high) > threshold:
        low, high = high, min(2 * high, cap)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) > threshold else (low, middle)
    return high


def fit(counts: Counts, model: Model = "mixture", f_max: float = 1.0) -> Curve:
    """Fit a curve to counts of right samples. `f_max` is taken as given; see `fit_ceiling`.

    "single" takes the mean rate, "empirical" each problem's own rate c / n, "mixture" a beta
    distribution by maximum likelihood (ConfigError if nothing was solved).
    """
    _check(0.0, 1.0, f_max)
    rates = counts.correct / counts.n
    if model == "single":
        return Curve(model, f_max, np.array([rates.mean()]), None)
    if model == "empirical":
        return Curve(model, f_max, rates, None)
    if model == "mixture":
        return Curve(model, f_max, np.empty(0), fit_beta_binomial(counts))
    raise ConfigError(f"there is no model {model!r:.40}; known are {', '.join(MODELS)}")


# --- the two-parameter fit ----------------------------------------------------------------


class Ceiling(NamedTuple):
    """F_max and p of the published form, fitted to coverage at 1 <= N <= window."""

    f_max: float
    p: float
    window: int
    f_max_half: float  # of a fit to half the window

    @property
    def curve(self) -> Curve:
        return Curve("single", self.f_max, np.array([self.p]), None)

    @property
    def moves(self) -> bool:
        """Whether half the window gives an F_max that differs by more than a tenth."""
        return abs(self.f_max_half / self.f_max - 1) > WINDOW_MOVES


def fit_ceiling(counts: Counts, window: int | None = None) -> Ceiling:
    """Fit F_max and p by least squares to coverage at N = 1, 2, 4, ... (12 points beyond 32).

    Raises ConfigError if the window is below 4 or above the samples of a problem, or if nothing
    was solved.
    """
    window = counts.n_min if window is None else window
    if not 4 <= window <= counts.n_min:
        raise ConfigError(f"the window is {window} but must be 4 to {counts.n_min}, the samples")
    if not counts.correct.any():
        raise ConfigError("no sample is correct, so there is no curve to fit; sample more")
    whole = _ceiling_of(counts, window)
    half = _ceiling_of(counts, window // 2)
    return Ceiling(whole[0], whole[1], window, half[0])


def window_points(window: int) -> list[int]:
    """Return where a window is fitted: powers of two to 32, twelve even in the logarithm beyond."""
    if window > 32:
        return sorted({int(n) for n in np.rint(np.geomspace(1, window, 12))})
    return sorted({1 << i for i in range(window.bit_length())} | {window})


def _ceiling_of(counts: Counts, window: int) -> tuple[float, float]:
    """Least squares: for one p the best F_max is closed; p is searched on a falling grid."""
    ns = np.array(window_points(window))
    seen = coverage(counts, ns.tolist())

    def best(p: float) -> tuple[float, float]:
        shape = -np.expm1(ns * math.log1p(-p))
        f_max = min(float(seen @ shape / (shape @ shape)), 1.0)
        return float(((seen - f_max * shape) ** 2).sum()), f_max

    low, high = math.log(1e-9), math.log(1 - 1e-9)
    for _ in range(6):
        grid = np.linspace(low, high, 101)
        at = int(np.argmin([best(math.exp(x))[0] for x in grid]))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, 100)]
    p = math.exp((low + high) / 2)
    return best(p)[1], p


# --- observed -----------------------------------------------------------------------------


def observed_saturation(values: np.ndarray, eps: float, smooth: int = 3) -> int:
    """Return the smallest n after which every further step of a curve gains at most eps.

    values: F(1), F(2), ..., float64 [N]; steps are averaged over `smooth` neighbours. F(0) = 0.
    """
    steps = np.diff(np.concatenate([[0.0], values]))
    if smooth > 1 and steps.size >= smooth:
        weights = np.ones(smooth)
        steps = np.convolve(steps, weights, "same") / np.convolve(
            np.ones(steps.size), weights, "same"
        )
    above = np.flatnonzero(steps > eps)
    return int(above[-1]) + 1 if above.size else 0


def refuse_votes(selector: str) -> None:
    """Raise ConfigError for a selector whose curve is not of this form."""
    if selector in ("majority", "vote", "weighted"):
        raise ConfigError(
            f"the selector is {selector!r}: a vote ends at the share of problems whose most "
            "frequent answer is right and may fall, so F_max (1 - (1 - p)^N) does not describe "
            "it; read its own curve with 'capax scale coverage'"
        )
    if selector not in ("oracle", "verifier"):
        raise ConfigError(f"there is no selector {selector!r:.40}; known are oracle, verifier")
