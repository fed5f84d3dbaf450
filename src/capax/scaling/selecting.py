"""What the samples of a run are worth under votes that know nothing of right and wrong.

All of it is computed from the pool on disk ("Think Deep, Think Fast", 2025, arXiv 2504.14047): the
plain vote exactly (`voting_curve`), votes of the shortest half, votes weighed by shortness and of
the first to finish over random subsets, and the tokens that finishing first saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capax.errors import ConfigError
from capax.files.run_folder import read_manifest
from capax.scaling.run_directory import Sample, Verdict, read_rows
from capax.scaling.selection import MISSING, Answers, majority, weighted
from capax.scaling.voting_curve import vote_accuracy

N_SUBSETS = 200


@dataclass(frozen=True)
class Pool:
    """One problem's samples: answers with verdicts, and tokens of each, int64 [N]."""

    problem_id: str
    answers: Answers
    n_tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class Selected:
    """Accuracies with k samples, means over problems.

    `vote`: exact. `short`: the shortest ceil(k / 2) vote. `inverse`: each votes with 1 / length.
    `first_saves`: share of the k samples' tokens that ending all of them when ceil(k / 2) have
    finished does not take; those that vote then are the `short` ones, as tokens come evenly.
    """

    k: int
    vote: float
    short: float
    inverse: float
    first_saves: float


def read_pools(path: Path) -> list[Pool]:
    """Read a run's samples with their verdicts.

    Raises ConfigError if a problem has none or the endpoint told no lengths.
    """
    problems: dict[str, str] = read_manifest(path).get("problems", {})
    lengths: dict[tuple[str, int], int | None] = {
        sample.key: sample.new_tokens for sample in read_rows(path, Sample)
    }
    verdicts: dict[str, dict[int, Verdict]] = {name: {} for name in problems}
    for verdict in read_rows(path, Verdict):
        if problems.get(verdict.problem_id) == verdict.checker:
            verdicts[verdict.problem_id][verdict.sample_idx] = verdict
    pools = []
    for name, found in verdicts.items():
        known = [found[i] for i in sorted(found)]
        tokens = [lengths.get((name, v.sample_idx)) for v in known]
        if not known or None in tokens:
            raise ConfigError(
                f"{path}: problem {name!r:.60} has no checked samples with known lengths; "
                "continue the run with the same command"
            )
        answers = Answers([v.answer for v in known], np.array([v.correct for v in known]))
        pools.append(Pool(name, answers, np.maximum(np.array(tokens, np.int64), 1)))
    if not pools:
        raise ConfigError(f"{path} has no problems")
    return pools


def select(
    pools: Sequence[Pool], ks: Sequence[int], *, subsets: int = N_SUBSETS, seed: int = 0
) -> list[Selected]:
    """Return what each vote gets right with k samples, for each k. Raises ConfigError for a k."""
    n_min = min(pool.n_tokens.size for pool in pools)
    if bad := [k for k in ks if not 1 <= k <= n_min]:
        raise ConfigError(f"k is {bad[0]} but must be 1 to {n_min}, the samples of each problem")
    found = []
    for k in ks:
        rng = np.random.default_rng([seed, k])
        parts = np.array([_one(pool, k, subsets, rng) for pool in pools])
        short, inverse, saves = parts.mean(0)
        vote = float(np.mean([exact_vote(pool.answers, k) for pool in pools]))
        found.append(Selected(k, vote, float(short), float(inverse), float(saves)))
    return found


def exact_vote(answers: Answers, k: int) -> float:
    """Return the chance that the vote of k of the samples is right."""
    codes = answers.codes
    voting = codes != MISSING
    sizes = np.bincount(codes[voting]) if voting.any() else np.zeros(0, np.int64)
    right = {int(c) for c in codes[voting & (answers.correct > 0)]}
    missing = int((~voting).sum())
    return sum(
        vote_accuracy(
            int(sizes[c]),
            [int(size) for i, size in enumerate(sizes) if i != c],
            k,
            without_answer=missing,
        )
        for c in right
    )


def _one(pool: Pool, k: int, subsets: int, rng: np.random.Generator) -> tuple[float, float, float]:
    m = (k + 1) // 2
    short = inverse = saves = 0.0
    for _ in range(subsets):
        at = rng.permutation(pool.n_tokens.size)[:k]
        codes, right, tokens = pool.answers.codes[at], pool.answers.correct[at], pool.n_tokens[at]
        first = np.argsort(tokens, kind="stable")[:m]
        short += float(majority(codes[first], None) @ right[first])
        inverse += float(weighted(codes, 1.0 / tokens) @ right)
        saves += 1 - float(np.minimum(tokens, tokens[first[-1]]).sum() / tokens.sum())
    return short / subsets, inverse / subsets, saves / subsets
