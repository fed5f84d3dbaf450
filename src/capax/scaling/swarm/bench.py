"""What a swarm's consensus is worth: against votes on the same answers, and at equal tokens.

Every question is answered once by every node; the same answers are then chosen from by a plain
vote, by comparisons with equal weights, and by comparisons with weights earned on gold questions
beforehand. A vote over further samples of the same nodes spends what the swarm spent. Nothing here
sees a reference before an answer is chosen.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from capax.endpoints import GenerateRequest
from capax.errors import ConfigError
from capax.scaling.swarm.admission import Challenge, ask_pair
from capax.scaling.swarm.consensus import (
    Node,
    SwarmResult,
    ask,
    attempts,
    strengths,
    strongest,
)
from capax.scaling.swarm.reputation import Record, weights

RESAMPLES = 2000
METHODS = (
    "mean node",
    "best node",
    "vote",
    "equal weights",
    "reputation",
    "vote, same tokens",
    "any",
)


@dataclass(frozen=True)
class Question:
    """A question, and what says whether an answer is right."""

    text: str
    is_right: Callable[[str], bool]


@dataclass(frozen=True)
class Row:
    """One question: how often each node and each way of choosing was right, and tokens spent."""

    nodes: tuple[float, ...]
    right: Mapping[str, float]
    tokens: Mapping[str, int]


@dataclass(frozen=True)
class Share:
    """Accuracy with a 95 % interval over questions, and tokens per question."""

    accuracy: float
    low: float
    high: float
    tokens: float


async def calibrate(
    nodes: Sequence[Node], challenges: Sequence[Challenge], seed: int = 0
) -> dict[str, Record]:
    """Return each judge's record on gold pairs, each asked in both orders."""
    records = {}
    for node in (n for n in nodes if n.judges):
        record = Record(is_admitted=True)
        for number, challenge in enumerate(challenges):
            verdicts = await ask_pair(node, challenge, seed + number)
            record = record.after_round(verdicts.count(1), verdicts.count(-1))
        records[node.id] = record
    return records


async def bench(
    nodes: Sequence[Node],
    questions: Sequence[Question],
    records: Mapping[str, Record],
    *,
    seed: int = 0,
    extra_temperature: float = 0.7,
    on_row: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Return what every way of choosing made of every question.

    `records` weigh the judges of "reputation"; `extra_temperature`: of the further samples of the
    vote at equal tokens. Raises ConfigError without a node that answers.
    """
    answerers = [node for node in nodes if node.answers]
    if not answerers:
        raise ConfigError("no node answers; a swarm needs at least one that does")
    rows = []
    for number, question in enumerate(questions):
        rows.append(
            await _row(nodes, answerers, question, records, seed + number, extra_temperature)
        )
        if on_row:
            on_row(number + 1, len(questions))
    return rows


async def _row(
    nodes: Sequence[Node], answerers: Sequence[Node], question: Question,
    records: Mapping[str, Record], seed: int, temperature: float,
) -> Row:  # fmt: skip
    asked = [node.prompts.answer(question.text) for node in answerers]
    got = await asyncio.gather(*(
        node.endpoint.generate(
            GenerateRequest(prompt, node.params.with_seed(seed + i), "answer")
        )
        for i, (node, prompt) in enumerate(zip(answerers, asked, strict=True))
    ))  # fmt: skip
    texts = [
        node.prompts.read(completion.text) for node, completion in zip(answerers, got, strict=True)
    ]
    n_answering = sum(completion.usage.total_tokens for completion in got)
    given = {node.id: text for node, text in zip(answerers, texts, strict=True) if text}
    equal = await ask(question.text, nodes, seed=seed, answers=given)
    trusted = weights(records)
    weighed = (
        _again(equal, trusted)
        if all(trusted.get(n.id, 0.0) > 0 for n in nodes if n.judges)
        else await ask(question.text, nodes, seed=seed, answers=given, weights=trusted)
    )
    more, n_more = await _further(answerers, question.text, weighed.tokens, temperature, seed)
    right = [question.is_right(text) for text in texts]
    return Row(
        tuple(right),
        {
            "mean node": float(np.mean(right)),
            "vote": voted(texts, question),
            "equal weights": float(question.is_right(equal.answer)),
            "reputation": float(question.is_right(weighed.answer)),
            "vote, same tokens": voted(texts + more, question),
            "any": float(any(right)),
        },
        {
            "mean node": n_answering // len(answerers),
            "vote": n_answering,
            "equal weights": n_answering + equal.tokens,
            "reputation": n_answering + weighed.tokens,
            "vote, same tokens": n_answering + n_more,
            "any": n_answering,
        },
    )


def _again(result: SwarmResult, trusted: Mapping[str, float]) -> SwarmResult:
    """Return the round with other weights of the same judges: no call is needed for it."""
    kept = attempts(len(result.answers), result.bad, trusted)
    theta, sure = strengths(result.answers, kept, result.comparisons, trusted)
    counts = [len(authors) for authors in result.authors]
    winner = strongest(result.answers, kept, theta, counts)
    return replace(result, answer=result.answers[winner], theta=theta, confidence=sure)


async def _further(
    answerers: Sequence[Node], question: str, budget: int, temperature: float, seed: int
) -> tuple[list[str], int]:
    """Return further samples, in turn from every node, that take at most `budget` tokens."""
    texts: list[str] = []
    spent, number = 0, 0
    while True:
        node = answerers[number % len(answerers)]
        prompt = node.prompts.answer(question)
        size = await node.endpoint.count_prompt(prompt)
        if spent + size + (node.params.max_tokens or 0) > budget:
            return texts, spent
        params = replace(node.params, temperature=temperature, seed=seed * 1009 + number)
        got = await node.endpoint.generate(GenerateRequest(prompt, params, "more"))
        texts.append(node.prompts.read(got.text))
        spent += got.usage.total_tokens
        number += 1


def voted(texts: Sequence[str], question: Question) -> float:
    """Return the chance that the most frequent text is right, ties drawn by lot."""
    counts = Counter(texts)
    most = max(counts.values())
    tied = [text for text, n in counts.items() if n == most]
    return sum(question.is_right(text) for text in tied) / len(tied)


def summarize(rows: Sequence[Row], seed: int = 0) -> dict[str, Share]:
    """Return each way's accuracy; the best node is the one that is best over all questions."""
    table = {name: np.array([row.right[name] for row in rows]) for name in rows[0].right}
    of_nodes = np.array([row.nodes for row in rows], float)
    table["best node"] = of_nodes[:, of_nodes.mean(0).argmax()]
    tokens = {name: float(np.mean([row.tokens[name] for row in rows])) for name in rows[0].tokens}
    tokens["best node"] = tokens["mean node"]
    picks = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    found = {}
    for name in METHODS:
        low, high = np.quantile(table[name][picks].mean(1), (0.025, 0.975))
        found[name] = Share(float(table[name].mean()), float(low), float(high), tokens[name])
    return found


def gain(
    rows: Sequence[Row], name: str, baseline: str, seed: int = 0
) -> tuple[float, float, float]:
    """Return how much more often `name` was right than `baseline`, with a paired 95 % interval."""
    difference = np.array([row.right[name] - row.right[baseline] for row in rows])
    picks = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
    low, high = np.quantile(difference[picks].mean(1), (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)
