"""Tests that need no distribution: signed ranks of pairs, Cliff's delta, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_EXACT = 50  # pairs whose 2^n signs are all counted


def midranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, equal values sharing their mean, float64 [n]."""
    _, where, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    ranks: np.ndarray = (ends - (sizes - 1) / 2)[where.reshape(-1)]
    return ranks


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
    """Return Wilcoxon's two-sided p that differences scatter evenly around 0; zeros are left out.

    Exact for up to 50 differences, ties included; above, the normal approximation.
    """
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    if not d.size:
        return 1.0
    ranks = midranks(np.abs(d))
    positive, all_ranks = float(ranks[d > 0].sum()), float(ranks.sum())
    if d.size > MAX_EXACT:
        spread = math.sqrt(float(np.square(ranks).sum()) / 4)
        return math.erfc(abs(positive - all_ranks / 2) / spread / math.sqrt(2))
    # ways[s]: choices of signs whose positive ranks, doubled to be whole, sum to s
    doubled = np.rint(2 * ranks).astype(np.int64)
    ways = np.zeros(int(doubled.sum()) + 1)
    ways[0] = 1
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[: ways.size - rank]
    at = round(2 * positive)
    tail = min(ways[: at + 1].sum(), ways[at:].sum())
    return min(1.0, math.ldexp(float(tail), 1 - d.size))


def rank_biserial(differences: Sequence[float] | np.ndarray) -> float:
    """Return the share of ranks that are of positive differences less the other's, -1 to 1."""
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    ranks = midranks(np.abs(d))
    return float(np.sum(np.sign(d) * ranks) / np.sum(ranks)) if d.size else 0.0


def cliffs_delta(a: np.ndarray, b: np.ndarray) -> float:
    """Return how much more often a value of `a` exceeds one of `b` than falls below it, -1 to 1."""
    order = np.sort(b)
    below = np.searchsorted(order, a, "left")
    at_most = np.searchsorted(order, a, "right")
    return float((below + at_most - b.size).mean() / b.size)


def rank_sum_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p that `a` and `b` are alike, Mann-Whitney's normal approximation."""
    n, m = a.size, b.size
    both = np.concatenate([a, b])
    _, sizes = np.unique(both, return_counts=True)
    total = n + m
    ties = float((sizes.astype(np.float64) ** 3 - sizes).sum()) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - ties)
    if variance <= 0:
        return 1.0
    centred = midranks(both)[:n].sum() - n * (total + 1) / 2
    return math.erfc(abs(float(centred)) / math.sqrt(2 * variance))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for being tested together, each at most 1 (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = highest
    return corrected
