"""What votes weighed by learnt marks get right on a run, beside the plain vote of the same samples.

"Think Deep, Think Fast" (2025, arXiv 2504.14047). Marks are fitted on one half of a run's problems
and judged on the other; neither weights nor votes know what is right there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capax.errors import ConfigError
from capax.scaling.calibration import Calibration
from capax.scaling.markers import Traces
from capax.scaling.selecting import Pool, exact_vote
from capax.scaling.selection import MISSING, weighted

N_SUBSETS = 50


@dataclass(frozen=True, slots=True)
class MarkedVotes:
    """Accuracies with k samples, means over problems; `stderr`: of marked less plain, paired."""

    k: int
    n_problems: int
    vote: float
    marked: float
    marked_odds: float
    stderr: float


def marked_votes(
    pools: Sequence[Pool], traces: Traces, calibration: Calibration, k: int,
    *, subsets: int = N_SUBSETS, seed: int = 0,
) -> MarkedVotes:  # fmt: skip
    """Vote with k samples of each problem of `traces`; the plain vote is exact.

    `traces` are the samples of some of the pools' problems, in their order. Raises ConfigError if
    the calibration has seen a problem, or for a k that is more than a problem's samples.
    """
    calibration.check_unseen(traces)
    rng = np.random.default_rng([seed, k])
    names = set(map(str, traces.problems))
    parts = []
    for pool in pools:
        if pool.problem_id not in names:
            continue
        features = traces.features[traces.problems == pool.problem_id]
        if not 1 <= k <= len(features) or len(features) != len(pool.answers.answers):
            raise ConfigError(
                f"k is {k} but problem {pool.problem_id!r:.60} has {len(features)} samples with "
                f"verdicts for {len(pool.answers.answers)} answers"
            )
        plain = exact_vote(pool.answers, k)
        logs, odds = _one(pool, features, calibration, k, subsets, rng)
        parts.append((plain, logs, odds))
    if not parts:
        raise ConfigError("none of the problems to judge on is in the run")
    found = np.array(parts)
    gain = found[:, 1] - found[:, 0]
    error = float(gain.std(ddof=1) / np.sqrt(gain.size)) if gain.size > 1 else 0.0
    vote, marked, odds = map(float, found.mean(0))
    return MarkedVotes(k, gain.size, vote, marked, odds, error)


def _one(
    pool: Pool, features: np.ndarray, calibration: Calibration, k: int, subsets: int,
    rng: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    n = len(features)
    rights = np.zeros(2)
    draws = 1 if k == n else subsets
    for _ in range(draws):
        at = rng.permutation(n)[:k]
        able = pool.answers.codes[at] != MISSING
        if able.any():
            at = at[able]  # as in the strategy: what has no answer is no measure for the others
        codes, right = pool.answers.codes[at], pool.answers.correct[at]
        n_answers = np.unique(codes[codes != MISSING]).size
        for i, odds in enumerate((False, True)):
            scores = calibration.marks.weights(features[at], n_answers, odds=odds)
            rights[i] += float(weighted(codes, scores) @ right)
    logs, odds_ = rights / draws
    return float(logs), float(odds_)
