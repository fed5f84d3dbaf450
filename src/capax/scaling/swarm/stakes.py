"""What a judge has at stake: a deposit in every round, lost by one that keeps standing apart.

A judge that is in the bottom tenth of agreement in three rounds in a row loses the deposit of the
third; every other deposit is returned. Who cannot place one any more has to be admitted anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

DEPOSIT = 1
BEGIN = 5  # deposits of a judge that was just admitted
BOTTOM = 0.1
IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Account:
    """Deposits left, and how many rounds in a row ended in the bottom tenth."""

    balance: int = BEGIN
    low_rounds: int = 0

    @property
    def can_judge(self) -> bool:
        """Say whether a deposit can be placed."""
        return self.balance >= DEPOSIT

    def after_round(self, *, is_low: bool) -> Account:
        """Return the account once the deposit of a round is returned or lost."""
        if not is_low:
            return Account(self.balance, 0)
        if self.low_rounds + 1 < IN_A_ROW:
            return Account(self.balance, self.low_rounds + 1)
        return Account(max(self.balance - DEPOSIT, 0), 0)


def lowest(agreement: Mapping[str, tuple[int, int]]) -> set[str]:
    """Return the judges in the bottom tenth of agreement, (same, other) verdicts each.

    At least one, unless it agrees no less than the median: among judges of one mind nobody is low.
    Fewer than three judges are too few to say who stands apart.
    """
    rates = {name: a / (a + b) for name, (a, b) in agreement.items() if a + b}
    if len(rates) < 3:
        return set()
    n_low = math.ceil(BOTTOM * len(rates))
    middle = median(rates.values())
    cut = sorted(rates.values())[n_low - 1]
    low = {name for name, rate in rates.items() if rate <= cut and rate < middle}
    return low if len(low) <= n_low else {n for n in low if rates[n] < cut}


def settle(
    accounts: Mapping[str, Account], agreement: Mapping[str, tuple[int, int]]
) -> dict[str, Account]:
    """Return the accounts after a round; a judge whose verdicts decided nothing keeps its own."""
    low = lowest(agreement)
    judged = {name for name, (a, b) in agreement.items() if a + b}
    return dict(accounts) | {
        name: accounts.get(name, Account()).after_round(is_low=name in low) for name in judged
    }
