"""Peer-ranked consensus: several answers, compared in pairs by several judges.

Fortytwo (2025, arXiv 2510.24801). Different answers are compared by every judge in an order of its
own, each pair in both orders, and a Bradley-Terry fit of all verdicts chooses; equal strengths go
to what more samples said. With `nodes` several models answer and judge, as `capax scale swarm`
has them; without, one model stands in the place of many: its judges are samples of it, which err
together as different models do less.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from capax.decoding.params import SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints import Choice
from capax.errors import ConfigError
from capax.methods import SPELLED, Method, register
from capax.scaling.strategies.majority import sampled
from capax.scaling.strategies.strategy import Prompt, Purse, check_range
from capax.scaling.swarm.consensus import (
    JUDGE,
    Budget,
    Comparison,
    JudgeMode,
    Node,
    SwarmResult,
    ask,
    compared_by_letters,
    strengths,
    strongest,
)
from capax.scaling.swarm.judging import compare_messages, verdict_of, visible
from capax.scaling.swarm.pairs import pair_plan

MAX_ANSWERS, MAX_JUDGES = 64, 32
LETTERS = ("A", "B")


@dataclass(frozen=True)
class Swarm:
    """`n` answers of one model; `judges`: how often all pairs of the plan are compared.

    `nodes`: the models that answer and judge instead, ids joined by '+', or 'all' that there are;
    `n`, `judges` and `temperature` are then theirs. `judging`: by a reason and a letter, or by the
    letters' probabilities. `stop_at`, `seconds`: of a swarm of nodes; as certain as this asks no
    further judge, and after so long the answer is the best under the comparisons made so far.
    """

    n: int = field(default=4, metadata=SPELLED)
    judges: int = 3
    temperature: float = 0.7
    nodes: str = ""
    judging: JudgeMode = "reason"
    stop_at: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_range("n", self.n, 1, MAX_ANSWERS)
        check_range("judges", self.judges, 1, MAX_JUDGES)
        check_range("temperature", self.temperature, 0.01, 100.0)
        if not self.nodes and (self.stop_at is not None or self.seconds is not None):
            raise ConfigError("stop_at and seconds are of a swarm of nodes; name them: nodes=all")
        if self.stop_at is not None:
            check_range("stop_at", self.stop_at, 0.5, 1)
        if self.seconds is not None:
            check_range("seconds", self.seconds, 0.001, 86_400)

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        if self.nodes:
            return await self._by_nodes(purse, prompt)
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

    async def _by_nodes(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        members = purse.members
        if members is None:
            raise ConfigError(
                f"swarm:nodes={self.nodes:.60} names nodes, and there are none here; name their "
                "file: capax serve --nodes FILE, or capax scale swarm"
            )
        nodes = [bounded(node, purse.params) for node in members.chosen(self.nodes)]
        got = await ask(
            question_of(prompt), nodes, budget=Budget(seconds=self.seconds),
            weights=members.weights, standing=members.standing, seed=purse.params.seed or 0,
            judge_mode=self.judging, stop_at=self.stop_at, prompt=prompt, ledger=purse.ledger,
        )  # fmt: skip
        purse.is_complete = purse.is_complete and got.is_complete
        purse.details = described(got)
        choices = [Choice(i, text, "stop") for i, text in enumerate(got.answers)]
        return choices[got.answers.index(got.answer)], choices

    async def _compare(self, purse: Purse, question: str, texts: Sequence[str]) -> list[Comparison]:
        pairs = []
        for judge in range(self.judges):
            order = np.random.default_rng([purse.params.seed or 0, judge]).permutation(len(texts))
            pairs += [(judge, int(order[a]), int(order[b])) for a, b in pair_plan(len(texts))]
        prompts = [compare_messages(question, texts[a], texts[b]) for _, a, b in pairs]
        if self.judging == "letters":
            shares = await self._shares(purse, prompts)
            return [
                compared_by_letters(str(judge), a, b, share)
                for (judge, a, b), share in zip(pairs, shares, strict=True)
                if share is not None
            ]
        params = replace(JUDGE, seed=purse.params.seed)
        replies = await purse.ask_each(prompts, purpose="compare", params=params)
        return [
            Comparison(str(judge), a, b, verdict_of(reply.text) or "U")
            for (judge, a, b), reply in zip(pairs, replies, strict=True)
            if reply is not None
        ]

    async def _shares(self, purse: Purse, prompts: Sequence[Prompt]) -> list[float | None]:
        """Return P(A) / (P(A) + P(B)) of the next token of each prompt, None where a call failed.

        Judges of one model say the same of the same pair: each pair is asked once.
        """
        unique = list({str(prompt): prompt for prompt in prompts}.values())
        logs = []
        for letter in LETTERS:
            replies = await purse.ask_each(
                unique, purpose="compare", params=letter_params(letter, purse.params.seed)
            )
            logs.append([r.logprobs[0] if r is not None and r.logprobs else None for r in replies])
        found = {
            str(prompt): None if a is None or b is None else 1 / (1 + math.exp(min(b - a, 700.0)))
            for prompt, a, b in zip(unique, *logs, strict=True)
        }
        return [found[str(prompt)] for prompt in prompts]


def letter_params(letter: str, seed: int | None) -> SamplingParams:
    """Return parameters under which the next token is this letter and its probability is told."""
    form = StructuredOutputs(choice=[letter])
    return SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=0, structured_outputs=form, seed=seed
    )


def bounded(node: Node, params: SamplingParams) -> Node:
    """Return the node with answers no longer than the request allows."""
    if params.max_tokens is None:
        return node
    own = node.params.max_tokens or params.max_tokens
    return replace(node, params=replace(node.params, max_tokens=min(own, params.max_tokens)))


def described(got: SwarmResult) -> dict[str, Any]:
    """Return who said what in a round and how strong it is, ready for JSON."""
    return {
        "winner": got.answers.index(got.answer),
        "answers": [
            {
                "text": text, "nodes": list(authors),
                "strength": None if math.isnan(theta) else theta,
            }
            for text, authors, theta in zip(got.answers, got.authors, got.theta, strict=True)
        ],
        "comparisons": len(got.comparisons),
        "confidence": got.confidence,
        "calls": got.calls,
        "tokens": got.tokens,
        "is_complete": got.is_complete,
    }  # fmt: skip


def question_of(prompt: Prompt) -> str:
    """Return what judges are shown as the question: the text, or the turns of a conversation."""
    if isinstance(prompt, str):
        return prompt
    texts = [content_of(message.get("content")) for message in prompt]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(
        f"{message.get('role')}: {text}" for message, text in zip(prompt, texts, strict=True)
    )


def content_of(content: Any) -> str:
    """Return a message's text: the text itself, or the texts of its parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else str(content)


_PAPER = "Fortytwo (2025, arXiv 2510.24801)"
register(
    Method("swarm", "strategy", _PAPER, "The answer that comparisons in pairs find best.", Swarm)
)
