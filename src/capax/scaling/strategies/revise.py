"""Thinking again: the model sees its answer and is asked to reconsider; chains of that may vote.

"Think Deep, Think Fast" (2025, arXiv 2504.14047), sequential revision and its mix with parallel
samples. `k` chains of `n` answers each; every round re-reads the question and the last answer only,
so a chain's cost grows with its rounds and not with their square. The vote is over the last answers
of the chains, or with final=vote over all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from capax.endpoints import Choice
from capax.methods import SPELLED, Method, register
from capax.scaling.strategies.majority import sampled
from capax.scaling.strategies.strategy import Prompt, Purse, check_range, followed_by
from capax.scaling.strategies.voting import Reading, winner

REQUEST = "Check the answer above. If it is wrong, correct it. Then answer the question again."


@dataclass(frozen=True)
class Revise:
    """`n` answers one after another, in `k` chains."""

    n: int = field(default=3, metadata=SPELLED)
    k: int = 1
    final: Literal["last", "vote"] = "last"
    answer: Reading = "auto"
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_range("n", self.n, 1, 64)
        check_range("k", self.k, 1, 128)
        check_range("temperature", self.temperature, 0.01, 100.0)

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        params = sampled(purse.params, self.temperature) if self.k > 1 else purse.params
        said = [list(purse.need(await purse.ask(prompt, self.k, params=params)))]
        for _ in range(self.n - 1):
            requests = [followed_by(prompt, c.text, REQUEST) for c in said[-1]]
            replies = await purse.ask_each(requests, purpose="revise", params=params)
            # A chain whose revision did not come stays at its last answer.
            said.append([new or old for new, old in zip(replies, said[-1], strict=True)])
            if not any(replies):
                said.pop()
                break
        everything = [choice for round_ in said for choice in round_]
        voters = everything if self.final == "vote" else said[-1]
        return winner(voters, reading=self.answer), everything


register(
    Method(
        "revise", "strategy", "Think Deep, Think Fast (2025, arXiv 2504.14047)",
        "The last of n answers, each a revision of the one before; k chains vote.", Revise,
    )
)  # fmt: skip
