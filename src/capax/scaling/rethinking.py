"""Chains of rounds: how often a round corrects a wrong answer, and how often it breaks a right one.

The sequential side of TTSPM (2025, arXiv 2505.20522). outcomes: bool [C, T], whether the answer of
round t of chain c is right; problems: int [C], the problem of each chain. The published model takes
a right answer as kept for ever ("ever right"); real rounds break answers too, so that what is
deployed is the last one. Ours: a two-state chain for it,

    A_t = pi + (A_1 - pi) (1 - q01 - q10)^(t - 1),   pi = q01 / (q01 + q10)

hazards per round with censoring, and a chi-squared test whether they are constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from capax.errors import ConfigError
from capax.scaling.saturation import Curve

PRIOR = 0.5  # of each side of a rate: Jeffreys


@dataclass(frozen=True, slots=True)
class Chains:
    """Outcomes of chains of one length. Raises ConfigError if shapes do not fit."""

    outcomes: np.ndarray
    problems: np.ndarray

    def __post_init__(self) -> None:
        outcomes, problems = np.asarray(self.outcomes), np.asarray(self.problems)
        if outcomes.ndim != 2 or not outcomes.size or problems.shape != outcomes.shape[:1]:
            raise ConfigError(
                f"chains have shapes {outcomes.shape} and {problems.shape}; they must be "
                "[C, T] and [C]"
            )
        object.__setattr__(self, "outcomes", outcomes.astype(bool))
        object.__setattr__(self, "problems", problems)

    @property
    def n_rounds(self) -> int:
        return int(self.outcomes.shape[1])

    def take(self, chains: np.ndarray) -> Chains:
        """Return some of the chains."""
        return Chains(self.outcomes[chains], self.problems[chains])

    def ever_right(self) -> np.ndarray:
        """Return the share of chains that were right up to each round, float64 [T]."""
        return np.asarray(np.logical_or.accumulate(self.outcomes, 1).mean(0))

    def last_right(self) -> np.ndarray:
        """Return the share of chains that are right at each round, float64 [T]."""
        return np.asarray(self.outcomes.mean(0))


class Hazards(NamedTuple):
    """First successes and chains at risk at each round, int [T] each."""

    successes: np.ndarray
    at_risk: np.ndarray

    @property
    def rate(self) -> np.ndarray:
        """Return successes over chains at risk (NaN where none is), float64 [T]."""
        rate = np.full(self.at_risk.size, np.nan)
        np.divide(self.successes, self.at_risk, out=rate, where=self.at_risk > 0)
        return rate

    def pooled(self, first: int = 1) -> float:
        """Return the one hazard of rounds `first` and later; censored chains count while at risk.

        Raises ConfigError if no chain is at risk there.
        """
        at_risk = int(self.at_risk[first - 1 :].sum())
        if not at_risk:
            raise ConfigError(f"no chain is at risk from round {first} on; there is no hazard")
        return float(self.successes[first - 1 :].sum() / at_risk)


def hazards(chains: Chains) -> Hazards:
    """Count first successes and chains at risk; a chain without one is censored at its end."""
    right = chains.outcomes
    before = np.zeros_like(right)
    before[:, 1:] = np.logical_or.accumulate(right, 1)[:, :-1]
    return Hazards((right & ~before).sum(0), (~before).sum(0))


class Constancy(NamedTuple):
    """Chi-squared test of equal hazards; `p_value` near 0: rounds are different coins."""

    statistic: float
    degrees: int
    p_value: float

    @property
    def fails(self) -> bool:
        return self.p_value < 0.01


def constancy(found: Hazards, first: int = 1, least_expected: float = 5.0) -> Constancy:
    """Test whether the hazards from round `first` on are one number.

    Rounds are merged from the last one backwards until each expects `least_expected` of both kinds.
    """
    cells: list[list[float]] = []
    successes, at_risk = found.successes[first - 1 :], found.at_risk[first - 1 :]
    if not at_risk.sum():
        return Constancy(0.0, 0, 1.0)
    p = successes.sum() / at_risk.sum()
    for hit, seen in zip(successes[::-1].tolist(), at_risk[::-1].tolist(), strict=True):
        if cells and cells[-1][1] * min(p, 1 - p) < least_expected:
            cells[-1][0] += hit
            cells[-1][1] += seen
        else:
            cells.append([hit, seen])
    kept = [(hit, seen) for hit, seen in cells if seen * min(p, 1 - p) >= least_expected]
    if len(kept) < 2:
        return Constancy(0.0, 0, 1.0)
    hits, n = np.array(kept).T
    p = hits.sum() / n.sum()
    statistic = float(((hits - n * p) ** 2 / (n * p * (1 - p))).sum())
    return Constancy(statistic, len(kept) - 1, chi_squared_tail(statistic, len(kept) - 1))


def chi_squared_tail(x: float, degrees: int) -> float:
    """Return P(chi-squared with `degrees` > x), by its finite sums."""
    if degrees < 1 or x <= 0:
        return 1.0
    if degrees % 2:
        term = math.sqrt(2 * x / math.pi) * math.exp(-x / 2)
        total = math.erfc(math.sqrt(x / 2))
        for k in range(1, degrees - 1, 2):
            total += term
            term *= x / (k + 2)
        return min(total, 1.0)
    term = total = math.exp(-x / 2)
    for k in range(1, degrees // 2):
        term *= x / (2 * k)
        total += term
    return min(total, 1.0)


# --- two states ---------------------------------------------------------------------------


class TwoState(NamedTuple):
    """Chances to be right first, to correct a wrong answer, and to break a right one."""

    a1: float
    q01: float
    q10: float

    def last_right(self, n_rounds: int) -> np.ndarray:
        """Return the chance that the answer of rounds 1..n is right, float64 [n]."""
        moves = self.q01 + self.q10
        if moves == 0:
            return np.full(n_rounds, self.a1)
        pi = self.q01 / moves
        return np.asarray(pi + (self.a1 - pi) * np.power(1 - moves, np.arange(n_rounds)))

    def ever_right(self, n_rounds: int) -> np.ndarray:
        """Return the chance that some answer of rounds 1..n is right, float64 [n]."""
        return np.asarray(1 - (1 - self.a1) * np.power(1 - self.q01, np.arange(n_rounds)))

    def last_saturation(self, eps: float) -> int:
        """Return the first round after which the last answer changes by at most eps."""
        moves = self.q01 + self.q10
        step = abs(self.q01 - self.a1 * moves)  # |A_2 - A_1|
        shrink = abs(1 - moves)
        if step <= eps:
            return 1
        if shrink >= 1:
            raise ConfigError("the chain only alternates, so its last answer never settles")
        return 1 if shrink == 0 else 1 + math.ceil(math.log(eps / step) / math.log(shrink) - 1e-12)


def fit_two_state(chains: Chains, prior: float = 0.0) -> TwoState:
    """Count first answers and transitions; `prior` is added to both sides of every rate."""
    right = chains.outcomes
    before, after = right[:, :-1], right[:, 1:]

    def rate(hits: int, n: int) -> float:
        return (hits + prior) / (n + 2 * prior) if n + 2 * prior else 0.0

    return TwoState(
        rate(int(right[:, 0].sum()), right.shape[0]),
        rate(int((~before & after).sum()), int((~before).sum())),
        rate(int((before & ~after).sum()), int(before.sum())),
    )


class Predicted(NamedTuple):
    """Curves over rounds 1..T, float64 [T] each."""

    last_right: np.ndarray
    ever_right: np.ndarray


def predict_per_problem(chains: Chains, n_rounds: int) -> Predicted:
    """Average the chains of each problem: last answers by its own two states.

    Ever right by the hazards of the whole set, round by round, so that no shape is assumed; rounds
    past those observed keep the last hazard.
    """
    names, sizes = np.unique(chains.problems, return_counts=True)
    last = np.zeros(n_rounds)
    for name, size in zip(names, sizes, strict=True):
        own = fit_two_state(chains.take(chains.problems == name), PRIOR)
        last += size * own.last_right(n_rounds)
    rate = np.nan_to_num(hazards(chains).rate)
    rate = np.concatenate([rate, np.full(max(n_rounds - rate.size, 0), rate[-1])])[:n_rounds]
    return Predicted(last / sizes.sum(), 1 - np.cumprod(1 - rate))


def predict_pooled(chains: Chains, n_rounds: int) -> Predicted:
    """Predict with one chain for all problems and one hazard for all rounds, as published."""
    p = hazards(chains).pooled()
    ever = Curve("single", 1.0, np.array([p]), None).at(np.arange(1, n_rounds + 1))
    return Predicted(fit_two_state(chains).last_right(n_rounds), ever)
