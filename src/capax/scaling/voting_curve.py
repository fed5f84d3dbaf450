"""The exact accuracy of majority voting with k of n samples, for every k.

"Large Language Monkeys" and "Think Deep, Think Fast" estimate it from random subsets; it has a
closed form. With c right samples and c_j samples of each wrong answer, the right answer wins with m
votes against fewer, or ties with t others and wins one time in t + 1:

    P(k) = sum_m C(c, m) sum_t [x^(k-m) y^t] prod_j (sum_{i<m} C(c_j, i) x^i + y C(c_j, m) x^m)
           / ((t + 1) C(n, k))

Samples without an answer do not vote; if none of the k has one, the vote is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from capax.errors import ConfigError

MAX_SAMPLES = 1000  # C(n, k) and its parts are finite as float64


def vote_accuracy(right: int, wrong: Sequence[int], k: int, *, without_answer: int = 0) -> float:
    """Return the chance that a vote of k of the samples is right.

    `right`: samples with the right answer; `wrong`: samples of each wrong answer. Ties are shared
    evenly. Raises ConfigError for k outside 1..n and for more than 1,000 samples.
    """
    n = right + sum(wrong) + without_answer
    if not 1 <= k <= n or n > MAX_SAMPLES:
        raise ConfigError(f"k is {k} of {n} samples; 1 to n of at most {MAX_SAMPLES} are possible")
    total = 0.0
    for m in range(1, min(right, k) + 1):
        ways = _ways(wrong, m, k - m, without_answer)
        total += math.comb(right, m) * math.fsum(w / (t + 1) for t, w in enumerate(ways))
    return min(1.0, total / math.comb(n, k))


def _ways(wrong: Sequence[int], m: int, n_left: int, without_answer: int) -> list[float]:
    """Return, for t = 0.., how many ways n_left samples leave t wrong answers with m votes.

    None may have more.
    """
    # table[t, i]: ways with i samples drawn and t answers of m votes
    table = np.zeros((1, n_left + 1))
    table[0] = _binomials(without_answer, without_answer, n_left)
    for size in wrong:
        below = _binomials(size, m - 1, n_left)
        ties = float(math.comb(size, m)) if m <= n_left else 0.0
        grown = np.zeros((table.shape[0] + (ties > 0), n_left + 1))
        for t, row in enumerate(table):
            grown[t] += np.convolve(row, below)[: n_left + 1]
            if ties:
                grown[t + 1, m:] += ties * row[: n_left + 1 - m]
        table = grown
    return [float(x) for x in table[:, n_left]]


def _binomials(size: int, most: int, n_left: int) -> np.ndarray:
    """Return C(size, i) for i up to `most`, zero above, float64 [n_left + 1]."""
    return np.array([float(math.comb(size, i)) if i <= most else 0.0 for i in range(n_left + 1)])
