"""Peer-ranked consensus of one model: several answers, compared in pairs by several judges.

Fortytwo (2025, arXiv 2510.24801) with one endpoint in the place of many nodes. Different answers
are compared by every judge in an order of its own, each pair in both orders, and a Bradley-Terry
fit of all verdicts chooses; equal strengths go to what more samples said. Judges are samples of
the same model: they err together, which a swarm of different models (`capax scale swarm`) does
less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from capax.endpoints import Choice
from capax.methods import SPELLED, Method, register
from capax.scaling.strategies.majority import sampled
from capax.scaling.strategies.strategy import Prompt, Purse, check_range
from capax.scaling.swarm.consensus import JUDGE, Comparison, strengths, strongest
from capax.scaling.swarm.judging import compare_messages, verdict_of, visible
from capax.scaling.swarm.pairs import pair_plan

MAX_ANSWERS, MAX_JUDGES = 64, 32


@dataclass(frozen=True)
class Swarm:
    """`n` answers; `judges`: how often all pairs of the plan are compared."""

    n: int = field(default=4, metadata=SPELLED)
    judges: int = 3
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_range("n", self.n, 1, MAX_ANSWERS)
        check_range("judges", self.judges, 1, MAX_JUDGES)
        check_range("temperature", self.temperature, 0.01, 100.0)

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        params = sampled(purse.params, self.temperature)
        choices = list(purse.need(await purse.ask(prompt, self.n, params=params)))
        counts = Counter(visible(choice.text) for choice in choices)
        texts = [text for text in counts if text]
        if len(texts) < 2:
            return choices[0], choices
        comparisons = await self._compare(purse, question_of(prompt), texts)
        judges = {c.judge: 1.0 for c in comparisons}
        theta, _ = strengths(texts, range(len(texts)), comparisons, judges)
        best = strongest(texts, range(len(texts)), theta, [counts[text] for text in texts])
        return next(c for c in choices if visible(c.text) == texts[best]), choices

    async def _compare(self, purse: Purse, question: str, texts: Sequence[str]) -> list[Comparison]:
        params = replace(JUDGE, seed=purse.params.seed)
        pairs = []
        for judge in range(self.judges):
            order = np.random.default_rng([purse.params.seed or 0, judge]).permutation(len(texts))
            pairs += [(judge, int(order[a]), int(order[b])) for a, b in pair_plan(len(texts))]
        prompts = [compare_messages(question, texts[a], texts[b]) for _, a, b in pairs]
        replies = await purse.ask_each(prompts, purpose="compare", params=params)
        return [
            Comparison(str(judge), a, b, verdict_of(reply.text) or "U")
            for (judge, a, b), reply in zip(pairs, replies, strict=True)
            if reply is not None
        ]


def question_of(prompt: Prompt) -> str:
    """Return what judges are shown as the question: the text, or what was said last."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1].get("content")
    return content if isinstance(content, str) else str(content)


_PAPER = "Fortytwo (2025, arXiv 2510.24801)"
register(
    Method("swarm", "strategy", _PAPER, "The answer that comparisons in pairs find best.", Swarm)
)
