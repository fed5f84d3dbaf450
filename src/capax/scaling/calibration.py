"""A vote's weight learnt from length and marking words: the chance that an answer is right.

"Think Deep, Think Fast" (2025, arXiv 2504.14047), marker-calibrated vote. A logistic regression on
features standardised within each problem is fitted on problems with known answers; other problems'
samples are then weighed by it. What a fit has seen is kept as hashes of the problems' ids, and
judging refuses them. Of independent voters over K answers the best vote sums
log(p / (1 - p)) + log(K - 1), here with K the answers seen and one unseen: with K as seen, two
answers at p = 1/2 would weigh nothing and noise would decide. Summed odds let one sure sample
outvote all others.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import astuple, dataclass

import numpy as np

from capax.errors import ConfigError
from capax.scaling.markers import FEATURES, Traces, mixed_problems

LOWEST, HIGHEST = 0.02, 0.98  # of a chance: nothing is so sure that it outweighs everything
PENALTY = 1.0  # on squared coefficients, as if of one sample each
MIN_PROBLEMS = 10
N_NEWTON = 50
BOUND = 100.0  # of a coefficient, in logits per standard deviation


@dataclass(frozen=True)
class Marks:
    """Logits per standard deviation of each feature within a problem, and at its mean."""

    bias: float
    length: float
    hedging: float = 0.0
    thinking: float = 0.0
    discourse: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(c) and abs(c) <= BOUND for c in astuple(self)):
            raise ConfigError(f"marks are {self} but each must be -{BOUND:g} to {BOUND:g}")

    def __str__(self) -> str:
        """Return the spelling that `parse_marks` reads."""
        return "/".join(f"{c:.4g}" for c in astuple(self))

    def chances(self, features: np.ndarray) -> np.ndarray:
        """Return the chance of each of a problem's samples, features [n, 4], float64 [n]."""
        logits = self.bias + standardised(features) @ np.array(astuple(self)[1:])
        chances: np.ndarray = np.clip(1 / (1 + np.exp(-logits)), LOWEST, HIGHEST)
        return chances

    def weights(self, features: np.ndarray, n_answers: int, *, odds: bool = False) -> np.ndarray:
        """Return the weight of each sample's vote, float64 [n]: log-odds, or odds.

        `n_answers`: different answers seen; one more is taken to be possible.
        """
        chances = self.chances(features)
        ratio: np.ndarray = chances / (1 - chances)
        return ratio if odds else np.log(ratio) + math.log(max(1, n_answers))


def parse_marks(text: str) -> Marks:
    """Read bias/length/hedging/thinking/discourse. Raises ConfigError for anything else."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) != 1 + len(FEATURES):
        raise ConfigError(
            f"marks are {text!r:.80}; write five numbers, bias/length/hedging/thinking/discourse, "
            "as 'capax scale markers RUN --calibrate' prints them"
        )
    return Marks(*numbers)


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features [n, f] less their means over their deviations; 0 where all are equal."""
    centred = features - features.mean(0)
    spread = features.std(0)
    return np.where(spread > 1e-9, centred / np.where(spread > 1e-9, spread, 1.0), 0.0)


def hash_of(problem: str) -> str:
    """Return what stands for a problem's id, 16 hex digits."""
    return hashlib.sha256(problem.encode()).hexdigest()[:16]


def is_dev(problem: str) -> bool:
    """Say whether a problem is of the half to fit on; depends on its id alone."""
    return int(hash_of(problem)[-1], 16) % 2 == 0


def split(traces: Traces) -> tuple[Traces, Traces]:
    """Return the samples of the problems to fit on, and those of the others."""
    dev = np.array([is_dev(str(name)) for name in traces.problems], bool)
    return traces.where(dev), traces.where(~dev)


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on which problems."""

    marks: Marks
    problem_hashes: frozenset[str]

    def check_unseen(self, traces: Traces) -> None:
        """Raise ConfigError if a problem was fitted on."""
        seen = [name for name in np.unique(traces.problems) if hash_of(name) in self.problem_hashes]
        if seen:
            raise ConfigError(
                f"{len(seen)} problems, {str(seen[0])!r:.60} among them, were fitted on; judge on "
                "others"
            )


def fit(traces: Traces) -> Calibration:
    """Fit on samples that ended by themselves. Raises ConfigError with fewer than 10 problems.

    Ridge logistic regression by Newton's method, features standardised within problems.
    """
    kept = traces.where(~traces.capped)
    _, at = np.unique(kept.problems, return_inverse=True)
    n_problems = int(at.max()) + 1 if at.size else 0
    if n_problems < MIN_PROBLEMS or not 0 < int(kept.correct.sum()) < kept.correct.size:
        raise ConfigError(
            f"a calibration needs right and wrong samples of {MIN_PROBLEMS} problems or more, here "
            f"are {int(kept.correct.sum()):,} right of {kept.correct.size:,} samples of "
            f"{n_problems:,} problems; sample more tasks"
        )
    x = np.ones((kept.correct.size, 1 + len(FEATURES)))
    for number in range(n_problems):
        rows = at == number
        x[rows, 1:] = standardised(kept.features[rows])
    coefficients = _logistic(x, kept.correct.astype(np.float64))
    hashes = frozenset(hash_of(str(name)) for name in np.unique(traces.problems))
    return Calibration(Marks(*map(float, coefficients)), hashes)


def _logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the coefficients [f] of x [n, f] that explain y [n]; the first is not penalised."""
    penalty = np.full(x.shape[1], PENALTY)
    penalty[0] = 1e-6
    found = np.zeros(x.shape[1])
    for _ in range(N_NEWTON):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        gradient = x.T @ (y - p) - penalty * found
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        found = found + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return found


@dataclass(frozen=True, slots=True)
class Area:
    """The chance that a right sample is weighed above a wrong one of the same problem.

    Mean over problems with both, with 95 % of a bootstrap over problems; `shuffled`: the same with
    right and wrong dealt out anew within each problem.
    """

    n_problems: int
    mean: float
    low: float
    high: float
    shuffled: float


def area_within(
    calibration: Calibration, traces: Traces, *, seed: int = 0, draws: int = 1000
) -> Area:
    """Judge a calibration on samples that ended, of problems it has not seen.

    Raises ConfigError if it has seen one, or no problem has right and wrong samples.
    """
    calibration.check_unseen(traces)
    kept = traces.where(~traces.capped)
    rng = np.random.default_rng(seed)
    areas, shuffled = [], []
    for rows in mixed_problems(kept):
        chances = calibration.marks.chances(kept.features[rows])
        correct = kept.correct[rows]
        areas.append(_area(chances, correct))
        shuffled.append(np.mean([_area(chances, rng.permutation(correct)) for _ in range(8)]))
    if not areas:
        raise ConfigError("no problem to judge on has both right and wrong samples; sample more")
    means = np.array(areas)[rng.integers(0, len(areas), (draws, len(areas)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Area(
        len(areas), float(np.mean(areas)), float(low), float(high), float(np.mean(shuffled))
    )


def _area(chances: np.ndarray, correct: np.ndarray) -> float:
    right, wrong = chances[correct][:, None], chances[~correct][None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean())
