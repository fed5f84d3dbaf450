"""Hidden questions whose better answer is known: where judges and answerers earn what they weigh.

A gold question is a round like any other: the nodes answer it, and the known better and worse
answer stand among theirs, so that every judge meets two answers of known different quality and
cannot tell the round from one that counts. Judges earn by comparisons of a right with a wrong
answer, answerers by answers that equal the better one, where the challenge says how that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from capax.scaling.swarm.admission import Challenge
from capax.scaling.swarm.consensus import Budget, JudgeMode, Node, SwarmResult, ask

Tally = dict[str, tuple[int, int]]  # by node: (right, wrong)


class GoldRound(NamedTuple):
    """A round on a gold question, and what it says of every judge and every answerer."""

    result: SwarmResult
    judged: Tally
    answered: Tally


async def gold_round(
    challenge: Challenge,
    nodes: Sequence[Node],
    judges: Sequence[str],
    *,
    seed: int = 0,
    budget: Budget | None = None,
    judge_mode: JudgeMode = "reason",
) -> GoldRound:
    """Play one round on a gold question.

    `judges`: ids of those who are asked, whatever they weigh now: who fell to nothing can earn it
    back. Raises as `ask`.
    """
    result = await ask(
        challenge.question, nodes, weights=dict.fromkeys(judges, 1.0), seed=seed, budget=budget,
        judge_mode=judge_mode, planted=(challenge.better, challenge.worse),
    )  # fmt: skip
    known = [challenge.is_right(text) for text in result.answers]
    return GoldRound(result, _judged(result, known), _answered(result, known, challenge))


def _judged(result: SwarmResult, known: Sequence[bool | None]) -> Tally:
    found: Tally = {c.judge: (0, 0) for c in result.comparisons}
    for c in result.comparisons:
        first, second = known[c.first], known[c.second]
        if first is None or second is None or first == second or c.verdict == "U":
            continue
        right, wrong = found[c.judge]
        is_right = (c.verdict == "A") == first
        found[c.judge] = (right + is_right, wrong + (not is_right))
    return found


def _answered(result: SwarmResult, known: Sequence[bool | None], challenge: Challenge) -> Tally:
    if challenge.checker is None:
        return {}
    return {
        author: (int(is_right is True), int(is_right is False))
        for is_right, authors in zip(known, result.authors, strict=True)
        for author in authors
    }


def standing_in(result: SwarmResult) -> Tally:
    """Return whose answers ended in the upper half of a round, and whose in the lower.

    A diagnostic, as agreement is of judges: a block that pushes one answer would lift itself by it.
    Nothing is said of a round with one answer, or of answers that are no attempt.
    """
    kept = [i for i, theta in enumerate(result.theta) if theta == theta]
    if len(kept) < 2:
        return {}
    order = sorted(kept, key=lambda i: -result.theta[i])
    upper = set(order[: len(order) // 2])
    return {
        author: (int(i in upper), int(i not in upper)) for i in kept for author in result.authors[i]
    }


def gold_due(rate: float, seed: int, n_rounds: int) -> bool:
    """Say whether a gold round comes before round `n_rounds`: at `rate`, in no order to foresee."""
    return bool(np.random.default_rng([seed, 5, n_rounds]).random() < rate)


def challenge_for(challenges: Sequence[Challenge], seed: int, n_rounds: int) -> Challenge:
    """Return the gold question of round `n_rounds`: all of them in a shuffled order, then again."""
    lap, at = divmod(n_rounds, len(challenges))
    order = np.random.default_rng([seed, 6, lap]).permutation(len(challenges))
    return challenges[int(order[at])]
