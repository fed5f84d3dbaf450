"""What judges and answers weigh: earned on hidden questions whose better answer is known.

Only those count. Agreement with the consensus would let a block of judges that agree with each
other raise its own reputation: with 4 of 10 in collusion it takes the swarm over. A record is a
pair of decayed counts under a Beta(2, 2) prior, the reputation its mean less one standard
deviation, and the weight of a judge the log odds of that, which is optimal for independent voters.

A node's answers have counts of their own, whose reputation is its standing. It decides where
comparisons say nothing, and who is asked when not all can be; it is no part of the strengths, which
would be a vote of the popular again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

PRIOR, DECAY = 2.0, 0.98
NEWCOMER_ROUNDS = 20  # judged rounds until a judge stands on its record alone
NEWCOMER_REPUTATION = 0.55
NEWCOMER_SHARE = 1 / 9  # of the established weight, all newcomers together: 10 % of everything
LARGEST_SHARE = 1 / 3


@dataclass(frozen=True, slots=True)
class Record:
    """Right and wrong verdicts and answers on gold questions, decayed; rounds; whether admitted."""

    right: float = 0.0
    wrong: float = 0.0
    rounds: int = 0
    is_admitted: bool = False
    answered_right: float = 0.0
    answered_wrong: float = 0.0

    def after_round(
        self, right: int = 0, wrong: int = 0, answered: tuple[int, int] = (0, 0)
    ) -> Record:
        """Return the record after one more round.

        `right`, `wrong`: verdicts on gold, `answered`: its own answers; all 0 without a gold
        question.
        """
        return replace(
            self,
            right=DECAY * self.right + right,
            wrong=DECAY * self.wrong + wrong,
            rounds=self.rounds + 1,
            answered_right=DECAY * self.answered_right + answered[0],
            answered_wrong=DECAY * self.answered_wrong + answered[1],
        )

    @property
    def mean(self) -> float:
        """Posterior mean of the accuracy of verdicts."""
        return (PRIOR + self.right) / (2 * PRIOR + self.right + self.wrong)

    @property
    def reputation(self) -> float:
        """Posterior mean of the accuracy of verdicts, less one standard deviation."""
        return _lower(self.right, self.wrong)

    @property
    def standing(self) -> float:
        """Posterior mean of the accuracy of answers, less one standard deviation."""
        return _lower(self.answered_right, self.answered_wrong)


def _lower(right: float, wrong: float) -> float:
    """Return mean less standard deviation of Beta(2 + right, 2 + wrong)."""
    total = 2 * PRIOR + right + wrong
    mean = (PRIOR + right) / total
    return mean - math.sqrt(mean * (1 - mean) / (total + 1))


def standings(records: Mapping[str, Record], nodes: Iterable[str]) -> dict[str, float]:
    """Return what the answer of every node weighs; one without a record is a newcomer."""
    return {name: records.get(name, Record()).standing for name in nodes}


def weight(reputation: float) -> float:
    """Return max(0, log odds)."""
    return max(0.0, math.log(reputation / (1 - reputation))) if 0 < reputation < 1 else 0.0


def weights(records: Mapping[str, Record]) -> dict[str, float]:
    """Return the weight of every judge; 0 for one that is not admitted.

    While nobody has earned weight, all who are admitted weigh the same. After that newcomers share
    at most 10 %, and where four or more count, none weighs more than a third.
    """
    admitted = {name: r for name, r in records.items() if r.is_admitted}
    established = {
        name: weight(r.reputation) for name, r in admitted.items() if r.rounds >= NEWCOMER_ROUNDS
    }
    found = dict.fromkeys(records, 0.0)
    total = sum(established.values())
    if total <= 0:
        return found | dict.fromkeys(admitted, 1.0)
    newcomers = {
        name: weight(NEWCOMER_REPUTATION)
        for name, r in admitted.items()
        if name not in established and r.mean >= 0.5
    }
    most = total * NEWCOMER_SHARE
    scale = min(1.0, most / sum(newcomers.values())) if newcomers else 1.0
    found |= established | {name: w * scale for name, w in newcomers.items()}
    return _capped(found)


def _capped(found: dict[str, float]) -> dict[str, float]:
    """Lower the largest weights until none is above a third of the sum."""
    if sum(w > 0 for w in found.values()) < 4:
        return found
    ordered = sorted(found.values(), reverse=True)
    for n_largest in (1, 2):
        # n at the cap c, the others as they are: c = (n c + rest) / 3.
        cap = sum(ordered[n_largest:]) / (1 / LARGEST_SHARE - n_largest)
        if ordered[n_largest] <= cap:
            break
    return {name: min(w, cap) for name, w in found.items()}
