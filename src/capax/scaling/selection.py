"""Picking one answer from k samples without knowing which is right.

"Large Language Monkeys" (2024, arXiv 2407.21787), section 4: majority vote, best of k by a scorer,
and votes weighted by score. Where no checker exists, coverage is a promise and these are what is
kept of it; the gap between both is the headline.

A selector sees answers and scores, never correctness, and returns for each sample its chance to be
picked, float64 [k]; ties are shared evenly, so what is measured is the expectation over them. A
missing answer (None) wins no vote unless all are missing. Both are choices of ours, the paper
leaves them open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from capax.errors import ConfigError

N_SUBSETS = 100
MISSING = -1


@dataclass(frozen=True)
class Answers:
    """One problem's samples: what they answer, whether that is right, and perhaps scores, [N]."""

    answers: Sequence[str | None]
    correct: np.ndarray
    scores: np.ndarray | None = None
    codes: np.ndarray = field(init=False, repr=False)  # equal for equal answers; MISSING for None

    def __post_init__(self) -> None:
        n = len(self.answers)
        if not n or len(self.correct) != n or (self.scores is not None and len(self.scores) != n):
            raise ConfigError(f"{n} answers need as many verdicts and scores, and at least one")
        numbers: dict[str, int] = {}
        codes = [
            MISSING if a is None else numbers.setdefault(a, len(numbers)) for a in self.answers
        ]
        object.__setattr__(self, "codes", np.array(codes, np.int64))
        object.__setattr__(self, "correct", np.asarray(self.correct, np.float64))


class Selector(Protocol):
    """codes: int64 [k], equal where answers are; scores: float64 [k] or None."""

    def __call__(self, codes: np.ndarray, scores: np.ndarray | None) -> np.ndarray: ...


def majority(codes: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Choose the most frequent answer."""
    return _vote(codes, np.ones(codes.size))


def weighted(codes: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Choose the answer whose samples have the largest sum of scores."""
    return _vote(codes, _needed(scores))


def best(codes: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Choose the sample with the highest score."""
    scores = _needed(scores)
    chosen = scores == scores.max()
    return np.asarray(chosen / chosen.sum())


def _vote(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    votes = codes != MISSING
    if not votes.any():
        return np.full(codes.size, 1 / codes.size)
    sums = np.bincount(codes[votes], weights[votes])
    sizes = np.bincount(codes[votes])
    wins = (sizes > 0) & (sums == sums[sizes > 0].max())
    share = np.zeros(codes.size)
    share[votes] = (wins / np.maximum(sizes, 1) / wins.sum())[codes[votes]]
    return share


def _needed(scores: np.ndarray | None) -> np.ndarray:
    if scores is None:
        raise ConfigError("this selector needs a score for each sample; use 'majority' without")
    return scores


SELECTORS: Mapping[str, Selector] = {"majority": majority, "weighted": weighted, "best": best}


class Selected(NamedTuple):
    """Accuracy of what a selector picks of k samples: mean and sd over random subsets."""

    k: int
    accuracy: float
    std: float


def accuracy_of(
    selector: Selector,
    problems: Sequence[Answers],
    ks: Sequence[int],
    *,
    subsets: int = N_SUBSETS,
    seed: int = 0,
) -> list[Selected]:
    """Return what a selector gets right of k samples per problem, for each k."""
    n_min = min(len(problem.answers) for problem in problems)
    results = []
    for k in ks:
        if not 1 <= k <= n_min:
            raise ConfigError(f"k is {k} but must be 1 to {n_min}, the samples of each problem")
        rng = np.random.default_rng([seed, k])
        right = np.zeros(subsets)
        for problem in problems:
            for number in range(subsets):
                at = rng.permutation(len(problem.answers))[:k]
                scores = None if problem.scores is None else problem.scores[at]
                right[number] += selector(problem.codes[at], scores) @ problem.correct[at]
        right /= len(problems)
        results.append(Selected(k, float(right.mean()), float(right.std())))
    return results


def vote_limit(problems: Sequence[Answers]) -> float:
    """Return where majority voting ends: problems whose most frequent answer is right."""
    rights = [majority(p.codes, None) @ p.correct for p in problems]
    return float(np.mean(rights))
