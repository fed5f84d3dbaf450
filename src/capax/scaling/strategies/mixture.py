"""Answers made from answers: a layer of drafts, then layers that see the drafts before them.

Mixture-of-Agents (Wang et al. 2024, arXiv 2406.04692) with one model as all agents, as "Think Deep,
Think Fast" (2025, arXiv 2504.14047) compares it. The last layer gives one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capax.endpoints import Choice
from capax.methods import Method, register
from capax.scaling.strategies.majority import sampled
from capax.scaling.strategies.strategy import Prompt, Purse, check_range, with_answers
from capax.scaling.strategies.voting import winner

REQUEST = (
    "Above are answers to the question, some of which may be wrong. "
    "Using what is right in them, give one answer."
)


@dataclass(frozen=True)
class Mixture:
    """`k` drafts in each layer but the last, `layers` of them in all."""

    k: int = 4
    layers: int = 2
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_range("k", self.k, 1, 64)
        check_range("layers", self.layers, 1, 8)
        check_range("temperature", self.temperature, 0.01, 100.0)

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        params = sampled(purse.params, self.temperature)
        asked, everything, drafts = prompt, [], []
        for layer in range(self.layers):
            is_last = layer == self.layers - 1
            size = 1 if is_last and self.layers > 1 else self.k
            got = await purse.ask(
                asked, size, params=params, purpose="answer" if not layer else "mix"
            )
            if not got:
                break
            drafts = got
            everything += got
            asked = with_answers(prompt, [draft.text for draft in drafts], REQUEST)
        purse.need(everything)
        return (drafts[0] if len(drafts) == 1 else winner(drafts)), everything


register(
    Method(
        "mixture", "strategy", "Mixture-of-Agents (2024, arXiv 2406.04692)",
        "One answer made from k drafts, through layers.", Mixture,
    )
)  # fmt: skip
