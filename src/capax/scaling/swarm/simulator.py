"""A simulator of judges, for what the protocol promises; no figure of it is a model's.

Answers are right or wrong; a judge of accuracy q prefers the right one with probability q, and
tosses a coin between two of equal quality, for each call anew.
"""

from __future__ import annotations

import numpy as np

from capax.scaling.swarm.pairs import pair_plan

SOURCE = "simulator"


def simulate_tables(
    quality: np.ndarray, accuracy: np.ndarray, trials: int, rng: np.random.Generator,
    *, shuffled: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return win tables, float64 [trials, judges, n, n].

    quality: bool [n] or [trials, n], whether an answer is right; accuracy: [judges], below one
    half for a judge that is inverted. `shuffled`: each judge walks its own order of the answers.
    """
    quality = np.broadcast_to(quality, (trials, np.shape(quality)[-1]))
    n, judges = quality.shape[1], len(accuracy)
    wins = np.zeros((trials, judges, n, n))
    order = np.argsort(rng.random((trials, judges if shuffled else 1, n)), axis=2)
    order = np.broadcast_to(order, (trials, judges, n))
    t, k = np.ogrid[:trials, :judges]
    for first, second in pair_plan(n):
        a, b = order[:, :, first], order[:, :, second]
        right_a, right_b = quality[t, a], quality[t, b]
        chance = np.where(
            right_a == right_b, 0.5, np.where(right_a, accuracy[None, :], 1 - accuracy[None, :])
        )
        prefers = rng.random((trials, judges)) < chance
        np.add.at(wins, (t, k, np.where(prefers, a, b), np.where(prefers, b, a)), 1)
    return wins
