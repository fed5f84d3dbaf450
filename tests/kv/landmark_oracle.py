"""Landmark attention written out literally: groups, one after another."""

from __future__ import annotations

import numpy as np


def grouped_weights(scores: np.ndarray, is_landmark: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the weights [t, t] of scores [t, t]; causal; `groups` [t]: the block of each token.

    A landmark stands last in its block. One whose block has no other visible token is no key.
    """
    t = len(scores)
    weights = np.zeros((t, t))
    for i in range(t):
        seen = np.arange(t) <= i
        local = seen & (groups == groups[i]) & ~is_landmark
        members = {}
        for c in np.unique(groups[seen & (groups != groups[i])]):
            regular = np.flatnonzero(seen & (groups == c) & ~is_landmark)
            landmark = np.flatnonzero(seen & (groups == c) & is_landmark)
            if len(regular) and len(landmark):
                members[landmark[0]] = regular
        first = np.array([*np.flatnonzero(local), *members], dtype=int)
        if not len(first):
            continue
        p = np.exp(scores[i, first] - scores[i, first].max())
        p /= p.sum()
        for j, share in zip(first, p, strict=True):
            if j not in members:
                weights[i, j] = share
                continue
            regular = members[j]
            r = np.exp(scores[i, regular] - scores[i, regular].max())
            weights[i, regular] = share * r / r.sum()
    return weights


def stream_groups(n: int, block: int, n_padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `n` stream tokens are landmarks, and their blocks; the first may be short."""
    places = np.arange(n) + n_padding
    return places % block == block - 1, places // block
