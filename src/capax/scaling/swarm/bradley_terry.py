"""Strengths from comparisons: Bradley and Terry's model, with judges of different weight.

wins[i, j] is how often (or with how much weight) i was found better than j; a draw is half a win
for both. The strengths maximise

    sum_ij wins[i, j] log sigma(theta_i - theta_j) - l2 / 2 sum_i theta_i^2

where l2 keeps an answer that never lost, or was never compared, finite. Everything here may carry
leading axes, so that many tables are fitted at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capax.errors import CapaxError, ConfigError

L2 = 0.01
_STEP = 1e-12
_MAX_STEPS = 200


def fit(wins: np.ndarray, l2: float = L2) -> np.ndarray:
    """Return the strengths theta, float64 [..., n], of wins [..., n, n].

    Newton steps until one is below 1e-12. Raises ConfigError for a table that is none, CapaxError
    if the steps do not settle.
    """
    wins = checked(wins)
    if not l2 > 0:
        raise ConfigError(f"l2 is {l2} but must be above 0; 'minorize' fits without it")
    n = wins.shape[-1]
    theta = np.zeros(wins.shape[:-1])
    pairs = wins + wins.swapaxes(-1, -2)
    identity = np.eye(n)
    for _ in range(_MAX_STEPS):
        chance = _sigmoid(theta[..., :, None] - theta[..., None, :])
        gradient = (wins - pairs * chance).sum(-1) - l2 * theta
        curve = pairs * chance * (1 - chance)
        hessian = curve.sum(-1)[..., None] * identity - curve + l2 * identity
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        # Far from the optimum a whole step may overshoot: none is longer than 2.
        longest = np.abs(step).max(-1, keepdims=True)
        step = step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
        theta = theta + step
        if longest.max() < _STEP:
            return np.asarray(theta)
    raise CapaxError("the strengths of these comparisons do not settle")


def minorize(wins: np.ndarray, tolerance: float = 1e-6, max_sweeps: int = 1000) -> np.ndarray:
    """Return strengths s, float64 [n], that sum to n, by minorisation and maximisation.

    The public client's own procedure, in place and in order; exp(theta) up to scale where no l2 is
    needed. An answer that never won, or never lost, is ranked right but not settled.
    """
    wins = checked(wins)
    n = wins.shape[-1]
    pairs = wins + wins.T
    strength = np.ones(n)
    for _ in range(max_sweeps):
        before = strength.copy()
        for i in range(n):
            met = (pairs[i] > 0) & (np.arange(n) != i)
            below = (pairs[i][met] / (strength[i] + strength[met])).sum()
            strength[i] = wins[i].sum() / below if below else 1.0
        strength *= n / strength.sum()
        if np.abs(strength - before).max() < tolerance:
            break
    return strength


def difference_sd(wins: np.ndarray, theta: np.ndarray, i: int, j: int, l2: float = L2) -> float:
    """Return the standard deviation of theta_i - theta_j (Laplace)."""
    pairs = wins + wins.T
    chance = _sigmoid(theta[:, None] - theta[None, :])
    curve = pairs * chance * (1 - chance)
    n = len(theta)
    covariance = np.linalg.inv(np.diag(curve.sum(1)) - curve + l2 * np.eye(n))
    return math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])


@dataclass(frozen=True)
class Ranking:
    """`theta` of each answer as given; `order`: best first. Equal strengths go by content."""

    theta: np.ndarray
    order: tuple[int, ...]

    @property
    def winner(self) -> int:
        return self.order[0]


def aggregate(
    answers: Sequence[str],
    tables: Sequence[np.ndarray],
    weights: Sequence[float] | None = None,
    l2: float = L2,
) -> Ranking:
    """Fuse the judges' tables, [n, n] each, and rank the answers.

    Weights are taken as they are: a judge of weight 2 counts as two. The order of answers and of
    judges changes nothing, to the last bit. Raises ConfigError for answers that are not distinct.
    """
    n = len(answers)
    if len(set(answers)) < n:
        raise ConfigError("two answers are the same text; give each text once")
    weights = [1.0] * len(tables) if weights is None else list(weights)
    if len(weights) != len(tables) or any(not (math.isfinite(w) and w >= 0) for w in weights):
        raise ConfigError("every judge needs one weight, a number that is not negative")
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in answers]
    by_key = sorted(range(n), key=keys.__getitem__)
    pooled = np.zeros((n, n))
    for a, i in enumerate(by_key):
        for b, j in enumerate(by_key):
            pooled[a, b] = math.fsum(
                w * t[i, j] for w, t in zip(weights, tables, strict=True)
            )  # exact, so in whatever order
    theta = np.empty(n)
    theta[by_key] = fit(pooled, l2)
    order = sorted(range(n), key=lambda i: (-theta[i], keys[i]))
    return Ranking(theta, tuple(order))


def bootstrap_share(
    answers: Sequence[str],
    tables: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    resamples: int = 200,
    seed: int = 0,
    l2: float = L2,
) -> float | None:
    """Return how often the winner wins when judges are drawn anew; None with fewer than two."""
    if len(tables) < 2:
        return None
    winner = aggregate(answers, tables, weights, l2).winner
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), resamples)
    pooled = np.tensordot(counts * np.asarray(weights), np.stack(tables), 1)
    theta = fit(pooled, l2)
    others = np.delete(theta, winner, axis=1).max(1)
    return float((theta[:, winner] > others).mean())


def checked(wins: np.ndarray) -> np.ndarray:
    """Return a table of wins as float64 with nothing on its diagonal. Raises ConfigError."""
    wins = np.asarray(wins, np.float64)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2] or not wins.shape[-1]:
        raise ConfigError(f"wins have shape {wins.shape}; a square table is needed")
    if not np.isfinite(wins).all() or (wins < 0).any():
        raise ConfigError("wins must be numbers that are not negative")
    return wins * (1 - np.eye(wins.shape[-1]))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
