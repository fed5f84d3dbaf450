"""Sampling until an imperfect verifier accepts: its ceiling, and when to stop.

"Inference Scaling fLaws: The Limits of LLM Resampling with Imperfect Verifiers" (2024, arXiv
2411.17501). A task is solved by a sample with chance r. A verifier accepts right answers with
chance c (completeness) and rejects wrong ones with chance s (soundness), so one attempt is

    accepted and right  a = c r        accepted and wrong  f = (1 - s)(1 - r)
    rejected            beta = 1 - a - f

and however often one tries, an accepted answer is right with chance a / (a + f). Where a wrong
answer costs `ratio` times what a right one earns (1), and an attempt costs `cost`, there is a best
number of attempts, often below ten and sometimes none; an abstention earns 0.

All arrays are float64 over tasks or types, chances between 0 and 1. `published` modes repeat the
authors' notebooks, which differ: their soundness is biased low, and they apply the belief about
the kind of task twice. Beta-distributed types are ours.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from capax.errors import ConfigError
from capax.scaling.coverage import Counts, pass_at_k

MAX_SCAN = 100_000
PUBLISHED_ATTEMPTS = 800
T = TypeVar("T")


# --- one attempt --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempts:
    """What one attempt at each task comes to: a, f, beta as above, float64 [P]."""

    right: np.ndarray
    wrong: np.ndarray

    @classmethod
    def of(
        cls, success: np.ndarray, soundness: np.ndarray | float, completeness: float = 1.0
    ) -> Attempts:
        """Build from r [P], s (one, or [P]) and c. Raises ConfigError for what is no chance."""
        r, s = np.asarray(success, np.float64), np.asarray(soundness, np.float64)
        for name, values in (("success", r), ("soundness", s), ("completeness", completeness)):
            if not np.all((np.asarray(values) >= 0) & (np.asarray(values) <= 1)):
                raise ConfigError(f"{name} holds {values} but a chance is between 0 and 1")
        return cls(completeness * r, (1 - s) * (1 - r))

    @property
    def rejected(self) -> np.ndarray:
        # Rounding may leave -1e-17 where nothing is ever rejected.
        return np.asarray(np.clip(1 - self.right - self.wrong, 0, 1))

    def accepted_within(self, k: int) -> np.ndarray:
        """Return the chance that one of k attempts is accepted."""
        return np.asarray(1 - self.rejected**k)

    def right_if_accepted(self) -> np.ndarray:
        """Return a / (a + f), whatever k is; NaN where nothing is ever accepted."""
        accepted = self.right + self.wrong
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(accepted > 0, self.right / accepted, np.nan))

    def accuracy_among_accepted(self, k: int) -> float:
        """Return the share of right ones among the tasks answered within k attempts."""
        within = self.accepted_within(k)
        return float(np.nansum(within * self.right_if_accepted()) / within.sum())

    def false_positive_rate(self, k: int) -> float:
        """Return the chance that what is accepted at attempt k, not earlier, is wrong.

        It rises with k: late acceptances come from hard tasks.
        """
        reached = self.rejected ** (k - 1)
        return float((reached @ self.wrong) / (reached @ (self.right + self.wrong)))


class Ceiling(NamedTuple):
    """Accuracy that no number of attempts exceeds, over tasks with any acceptance.

    `lower` and `upper` count tasks never accepted as wrong and as right.
    """

    value: float
    lower: float
    upper: float
    n_never_accepted: int


def ceiling(attempts: Attempts) -> Ceiling:
    """Return the mean of a / (a + f) over tasks, and its bounds."""
    limits = attempts.right_if_accepted()
    never = int(np.isnan(limits).sum())
    if never == limits.size:
        return Ceiling(math.nan, 0.0, 1.0, never)
    total = float(np.nansum(limits))
    return Ceiling(
        total / (limits.size - never), total / limits.size, (total + never) / limits.size, never
    )


# --- pools of samples that were judged twice ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Pools:
    """Of each task's n samples: accepted and right, accepted and wrong; int64 [P] each."""

    n: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    def __post_init__(self) -> None:
        Counts(self.n, self.right)
        Counts(self.n, self.wrong)
        Counts(self.n, np.asarray(self.right) + np.asarray(self.wrong))

    @property
    def attempts(self) -> Attempts:
        return Attempts(self.right / self.n, self.wrong / self.n)

    def accepted_within(self, k: int) -> np.ndarray:
        """Return the exact chance that k samples drawn from a task's pool hold an accepted one."""
        return pass_at_k(Counts(self.n, self.right + self.wrong), k)

    def reward(self, k: int, ratio: float) -> float:
        """Return the mean reward of trying up to k times: exact, where permutations are noisy."""
        accepted = self.right + self.wrong
        value = (self.right - ratio * self.wrong) / np.maximum(accepted, 1)
        return float((self.accepted_within(k) * value).mean())

    def false_positive_rate(self, k: int) -> float:
        """Return the chance that what is first accepted at the k-th sample is wrong."""
        accepted = self.right + self.wrong
        reached = np.ones(self.n.size)
        if k > 1:
            reached = 1 - self.accepted_within(k - 1)
        weight = reached / (self.n - k + 1)
        total = float(weight @ accepted)
        return float(weight @ self.wrong) / total if total else math.nan


# --- how good the verifier is -------------------------------------------------------------


class Estimate(NamedTuple):
    """A chance, with its 95 % interval over tasks and the counts behind it."""

    value: float
    low: float
    high: float
    n_hits: int
    n_trials: int


@dataclass(frozen=True, slots=True)
class VerifierModel:
    """What weak verdicts are worth, judged by strong ones; [P, N] bool of the same samples."""

    weak: np.ndarray
    strong: np.ndarray

    def __post_init__(self) -> None:
        shape = self.weak.shape
        if len(shape) != 2 or shape != self.strong.shape or 0 in shape:
            raise ConfigError(f"verdicts have shapes {shape} and {self.strong.shape}, not [P, N]")

    def soundness(self, *, seed: int = 0) -> Estimate:
        """Return P(weak rejects | wrong), counted directly."""
        return _ratio(~self.weak & ~self.strong, ~self.strong, seed)

    def completeness(self, *, seed: int = 0) -> Estimate:
        """Return P(weak accepts | right), counted directly."""
        return _ratio(self.weak & self.strong, self.strong, seed)

    def published_soundness(self) -> float:
        """Return (1 - b - r + q b) / (1 - r), the paper's: biased low, q is a mean over tasks."""
        weak, both = self.weak.mean(1), (self.weak & self.strong).sum(1)
        tried = weak > 0
        q = float((both[tried] / self.weak.sum(1)[tried]).mean()) if tried.any() else 0.0
        return published_soundness(float(weak.mean()), float(self.strong.mean()), q)

    def pools(self) -> Pools:
        """Return how many samples of each task the weak verifier accepts, right and wrong."""
        right = (self.weak & self.strong).sum(1)
        wrong = (self.weak & ~self.strong).sum(1)
        return Pools(np.full(right.size, self.weak.shape[1]), right, wrong)


def published_soundness(weak_rate: float, strong_rate: float, right_if_accepted: float) -> float:
    """Return the paper's s from mean pass rates b, r and the mean over tasks of P(right | weak)."""
    b, r, q = weak_rate, strong_rate, right_if_accepted
    return (1 - b - r + q * b) / (1 - r)


def _ratio(hits: np.ndarray, trials: np.ndarray, seed: int) -> Estimate:
    hit, tried = hits.sum(1).astype(np.float64), trials.sum(1).astype(np.float64)
    if not tried.sum():
        return Estimate(math.nan, 0.0, 1.0, 0, 0)
    picks = np.random.default_rng(seed).integers(0, hit.size, (1000, hit.size))
    totals = tried[picks].sum(1)
    again = hit[picks].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(again, (0.025, 0.975))
    return Estimate(
        float(hit.sum() / tried.sum()), float(low), float(high), int(hit.sum()), int(tried.sum())
    )


def audited(n_right: int, n_wrong: int) -> tuple[float, float]:
    """Return mean and sd of the ceiling's Beta posterior after accepted answers were audited.

    Uniform prior; n_right and n_wrong count what a person or a stronger model found.
    """
    a, b = n_right + 1, n_wrong + 1
    return a / (a + b), math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))


class Trend(NamedTuple):
    """A trend of right answers over attempts within tasks; `z` is standard normal without one."""

    z: float
    n_tasks: int  # with any information
    n_accepted: int


def trend(attempt: np.ndarray, is_right: np.ndarray, task: np.ndarray) -> Trend:
    """Test whether answers accepted later are wrong more often, within tasks (int64 [A] each).

    Cochran-Mantel-Haenszel with attempt numbers as scores: over tasks, the sum of scores of right
    answers against its hypergeometric mean and variance. Each task's own rate is constant when its
    attempts are independent, so a trend says that they share a stream. z is 0 without information.
    """
    observed = expected = variance = 0.0
    n_tasks = 0
    for name in np.unique(task):
        own = task == name
        score, right = attempt[own].astype(np.float64), is_right[own].astype(np.float64)
        n, n_right = len(right), right.sum()
        if n < 2 or n_right in (0, n):
            continue
        spread = float(((score - score.mean()) ** 2).sum())
        if not spread:
            continue
        n_tasks += 1
        observed += float(score @ right)
        expected += n_right * score.mean()
        variance += n_right * (n - n_right) / (n * (n - 1)) * spread
    z = (observed - expected) / math.sqrt(variance) if variance else 0.0
    return Trend(z, n_tasks, len(attempt))


# --- how often to try ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Types:
    """Kinds of task: shares (they sum to 1), success r, soundness s of each, float64 [J]."""

    shares: np.ndarray
    success: np.ndarray
    soundness: np.ndarray
    completeness: float = 1.0

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares, np.float64)
        if (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
            raise ConfigError(f"shares of types are {shares}; they must sum to 1")
        Attempts.of(self.success, self.soundness, self.completeness)

    @property
    def attempts(self) -> Attempts:
        return Attempts.of(self.success, self.soundness, self.completeness)


def two_types(success: np.ndarray, soundness: float, threshold: float = 0.5) -> Types:
    """Split tasks into easy (r above the threshold) and hard ones, as the paper does."""
    easy = np.asarray(success) > threshold
    parts = [part for part in (easy, ~easy) if part.any()]
    return Types(
        np.array([part.mean() for part in parts]),
        np.array([success[part].mean() for part in parts]),
        np.full(len(parts), soundness),
    )


def beta_types(alpha: float, beta: float, soundness: float) -> Types:
    """Return types for r ~ Beta(alpha, beta): quadrature in the logit of r.

    The integrand is r^alpha (1-r)^beta there, smooth however small alpha and beta are.
    """
    x = np.linspace(-40 / min(alpha, 1), 40 / min(beta, 1), 4001)
    log_weight = -alpha * np.logaddexp(0, -x) - beta * np.logaddexp(0, x)
    weight = np.exp(log_weight - log_weight.max())
    success = np.exp(-np.logaddexp(0, -x))
    return Types(weight / weight.sum(), success, np.full(x.size, soundness))


@dataclass(frozen=True, slots=True)
class Plan:
    """The best number of attempts per task; None: there is none, each further one still pays.

    `reward` is what it earns per task on average (its limit if unbounded), `attempts_99` the
    fewest attempts that earn 99 % of it, `mean_attempts` what is made of them on average:
    times the tokens of a sample, the expected cost.
    """

    attempts: int | None
    reward: float
    attempts_99: int
    mean_attempts: float

    @property
    def is_unbounded(self) -> bool:
        return self.attempts is None


def plan(
    types: Types,
    ratio: float,
    cost: float = 0.0,
    mode: Literal["exact", "published"] = "exact",
) -> Plan:
    """Return how often to try when a wrong answer costs `ratio`, an attempt `cost`.

    `published` sums floats as the authors' notebook does, up to 800 attempts: where the truth is
    unbounded it returns where the sum stops growing. Raises ConfigError for negative costs.
    """
    if not (ratio >= 0 and cost >= 0):
        raise ConfigError(f"ratio is {ratio} and cost {cost}; neither may be negative")
    attempts = types.attempts
    value = attempts.right - ratio * attempts.wrong - cost
    shares, beta = np.asarray(types.shares, np.float64), attempts.rejected
    if mode == "published":
        best, reward = _published_best(shares, beta, value)
        return Plan(best, reward, best, _mean_attempts(shares, beta, best))
    found = _best(shares * value, beta)
    reward = _reward(shares * value, beta, found)
    return Plan(
        found,
        reward,
        _first_above(shares * value, beta, found, 0.99 * reward),
        _mean_attempts(shares, beta, found),
    )


def _published_best(shares: np.ndarray, beta: np.ndarray, value: np.ndarray) -> tuple[int, float]:
    best, most, total = 0, 0.0, 0.0
    for k in range(1, PUBLISHED_ATTEMPTS + 1):
        survival = beta ** (k - 1)
        belief = shares * survival / (shares @ survival)
        total += float(belief @ value) * float(survival @ belief)  # the belief comes in twice
        if total > most:
            best, most = k, total
    return best, most


def _best(gain: np.ndarray, beta: np.ndarray) -> int | None:
    """Return the k that maximises sum over i <= k of sum_j gain_j beta_j^(i-1); None: unbounded.

    Types with equal beta are one. If gain per type falls with beta, as a uniform soundness
    with c + s > 1 makes it, the marginal gain changes its sign once: bisect for it.
    """
    rates, of = np.unique(beta, return_inverse=True)
    gains = np.bincount(of, gain, rates.size)
    rates, gains = rates[gains != 0], gains[gains != 0]
    if not gains.size:
        return 0
    if rates[-1] == 0:  # the first attempt is always accepted
        return 1 if gains[-1] > 0 else 0

    def marginal(k: int) -> float:  # times beta_max^(1-k), so that nothing underflows
        return float(gains @ (rates / rates[-1]) ** (k - 1))

    signs = np.sign(gains)
    if (np.diff(signs) <= 0).all():
        return _last_positive(marginal) if signs[-1] < 0 else None
    # Otherwise look at every maximum; past the horizon there is none.
    pays = np.array([marginal(k) > 0 for k in range(1, _settled(gains, rates) + 1)])
    ends = [0, *(np.flatnonzero(pays[:-1] & ~pays[1:]) + 1)]
    best = max(ends, key=lambda k: _reward(gains, rates, int(k)))
    # What is still to come after them, scaled as above: a difference of sums would round.
    if gains[-1] > 0 and gains / (1 - rates) @ (rates / rates[-1]) ** best > 0:
        return None
    return int(best)


def _last_positive(marginal: Callable[[int], float]) -> int:
    """Return the last k >= 1 with a positive marginal gain, 0 if there is none."""
    if marginal(1) <= 0:
        return 0
    high = 2
    while marginal(high) > 0:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if marginal(middle) > 0 else (low, middle)
    return low


def _settled(gains: np.ndarray, rates: np.ndarray) -> int:
    """Return a k from where the sign of the marginal gain is that of the last type."""
    others = np.abs(gains[:-1])
    k = 2
    while others @ (rates[:-1] / rates[-1]) ** (k - 1) >= abs(gains[-1]):
        k *= 2
        if k > MAX_SCAN:
            raise ConfigError(
                f"types are rejected almost equally often (up to {rates[-1]}); merge them"
            )
    return k


def _reward(gain: np.ndarray, beta: np.ndarray, k: int | None) -> float:
    """Return sum over i <= k of gain @ beta^(i-1); k None: the limit."""
    if k == 0:
        return 0.0
    ends = beta < 1
    series = np.full(beta.shape, np.inf if k is None else float(k))
    powers = np.zeros(int(ends.sum())) if k is None else beta[ends] ** k
    series[ends] = (1 - powers) / (1 - beta[ends])
    earning = gain != 0  # 0 times infinitely many attempts is 0
    return float(gain[earning] @ series[earning])


def _first_above(gain: np.ndarray, beta: np.ndarray, k: int | None, target: float) -> int:
    """Return the fewest attempts that earn the target, which k attempts do (None: the limit)."""
    high = 1
    if k is None:
        while _reward(gain, beta, high) < target:
            high *= 2
    else:
        high = k
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _reward(gain, beta, middle) >= target else (middle + 1, high)
    return low


def _mean_attempts(shares: np.ndarray, beta: np.ndarray, k: int | None) -> float:
    return _reward(shares, beta, k)


# --- trying, one task at a time -----------------------------------------------------------


class Answer(NamedTuple, Generic[T]):
    """What resampling ended with; `answer` None: it abstained."""

    answer: T | None
    attempts: int
    p_correct: float  # given that it was accepted when it was; 0 for an abstention


class ResampleUntil:
    """Whether one more attempt at a task pays, and what an accepted answer would be worth.

    It tries as often as the plan says (`max_attempts` where that is unbounded), which for types in
    order is as long as the next attempt has a positive value under the belief: after k - 1
    rejections type j has weight p_j beta_j^(k-1). One object serves one task.
    """

    def __init__(
        self, types: Types, ratio: float, cost: float = 0.0, max_attempts: int = 1000
    ) -> None:
        if max_attempts < 0:
            raise ConfigError(f"max_attempts is {max_attempts} but must not be negative")
        self.plan = plan(types, ratio, cost)
        best = self.plan.attempts
        self.max_attempts = max_attempts if best is None else min(best, max_attempts)
        self._attempts = types.attempts
        self._belief = np.asarray(types.shares, np.float64)
        self.n_rejected = 0

    @property
    def pays(self) -> bool:
        """Whether to make another attempt."""
        return self.n_rejected < self.max_attempts

    @property
    def p_correct(self) -> float:
        """The chance that an answer accepted at the next attempt is right."""
        right, wrong = self._belief @ self._attempts.right, self._belief @ self._attempts.wrong
        return float(right / (right + wrong)) if right + wrong > 0 else 0.0

    def reject(self) -> None:
        """Note that an attempt was rejected."""
        self.n_rejected += 1
        weight = self._belief * self._attempts.rejected
        if weight.sum() > 0:
            self._belief = weight / weight.sum()


async def resample(
    draw: Callable[[int], Awaitable[T]], accept: Callable[[T], bool], policy: ResampleUntil
) -> Answer[T]:
    """Draw answers (attempt number from 0) until one is accepted or no attempt pays any more."""
    while policy.pays:
        answer = await draw(policy.n_rejected)
        if accept(answer):
            return Answer(answer, policy.n_rejected + 1, policy.p_correct)
        policy.reject()
    return Answer(None, policy.n_rejected, 0.0)


# --- over models --------------------------------------------------------------------------


class Line(NamedTuple):
    """ceiling = slope * accuracy + intercept, least squares over models."""

    slope: float
    intercept: float
    r_squared: float

    def reaches(self, bar: float) -> float:
        """Return the single-sample accuracy from which resampling reaches the bar."""
        return (bar - self.intercept) / self.slope


def ceiling_line(accuracy: np.ndarray, ceilings: np.ndarray) -> Line:
    """Fit ceilings to the single-sample accuracies of a ladder of models."""
    if np.unique(accuracy).size < 2:
        raise ConfigError("a line needs models of two accuracies at least")
    slope, intercept = np.polyfit(accuracy, ceilings, 1)
    left = ceilings - slope * accuracy - intercept
    total = ((ceilings - ceilings.mean()) ** 2).sum()
    return Line(float(slope), float(intercept), float(1 - (left**2).sum() / total))
