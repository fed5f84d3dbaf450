"""One question to a swarm: answers, comparisons by every judge, and the strongest answer.

Every call is booked in one ledger under the budget's cap, before it is made; when tokens, calls or
time are over, the answer is the best under the comparisons made so far. Judges see the question and
two answers, never who wrote them, what a vote says or what is right.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from capax.decoding.params import SamplingParams
from capax.endpoints import BudgetExceeded, Endpoint, GenerateRequest, Ledger
from capax.errors import CapaxError, ConfigError, EndpointError
from capax.scaling.strategies.strategy import Prompt, as_messages
from capax.scaling.swarm.bradley_terry import aggregate, bootstrap_share
from capax.scaling.swarm.judging import (
    Verdict,
    compare_messages,
    filter_messages,
    is_good,
    verdict_of,
    visible,
)
from capax.scaling.swarm.pairs import bridges, pair_plan

JUDGE = SamplingParams(max_tokens=160, temperature=0.3)
FILTER = SamplingParams(max_tokens=24, temperature=0.0)


@dataclass(frozen=True)
class Node:
    """A member: it answers, judges, or both. `params` are those of its answers."""

    id: str
    endpoint: Endpoint
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512))
    answers: bool = True
    judges: bool = True


@dataclass(frozen=True)
class Budget:
    """What one question may take: tokens of all calls, calls, seconds. None: no limit."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One verdict: `first` was shown as A."""

    judge: str
    first: int
    second: int
    verdict: Verdict


@dataclass(frozen=True)
class SwarmResult:
    """The chosen answer and everything it rests on.

    `answers`: the different texts, `authors[i]` who gave answers[i]; `theta`: their strengths, NaN
    for one found to be no attempt; `confidence`: how often the winner wins when judges are drawn
    anew, None with fewer than two. `tokens`, `calls`: all of them. `is_complete`: nothing that was
    planned is missing.
    """

    answer: str
    answers: tuple[str, ...]
    authors: tuple[tuple[str, ...], ...]
    theta: tuple[float, ...]
    comparisons: tuple[Comparison, ...]
    bad: tuple[tuple[str, int], ...]  # (judge, answer) found to be no attempt
    confidence: float | None
    tokens: int
    calls: int
    is_complete: bool


async def ask(
    question: str,
    nodes: Sequence[Node],
    *,
    budget: Budget | None = None,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> SwarmResult:
    """Answer a question by consensus.

    `weights`: of judges by id (`reputation.weights`), all 1 if left out; a judge of weight 0 is not
    asked. Raises ConfigError without nodes that answer, and what a call raised if none answered.
    """
    if len({node.id for node in nodes}) < len(nodes):
        raise ConfigError("two nodes have the same id")
    answerers = [node for node in nodes if node.answers]
    if not answerers:
        raise ConfigError("no node answers; a swarm needs at least one that does")
    return await _Round(question, nodes, budget or Budget(), weights, seed).run(answerers)


class _Round:
    """One question on its way."""

    def __init__(
        self, question: str, nodes: Sequence[Node], budget: Budget,
        weights: Mapping[str, float] | None, seed: int,
    ) -> None:  # fmt: skip
        self._question = question
        self._budget = budget
        self._seed = seed
        self._ledger = Ledger(max_tokens=budget.tokens)
        self._n_calls = 0
        self._is_complete = True
        self._failure: CapaxError | None = None
        given = {node.id: 1.0 for node in nodes} if weights is None else weights
        self._judges = [n for n in nodes if n.judges and given.get(n.id, 0.0) > 0]
        self._weights = {node.id: given[node.id] for node in self._judges}
        self._texts: dict[str, list[str]] = {}
        self._comparisons: list[Comparison] = []
        self._bad: list[tuple[str, int]] = []

    async def run(self, answerers: Sequence[Node]) -> SwarmResult:
        try:
            async with asyncio.timeout(self._budget.seconds):
                await self._answer(answerers)
                if len(self._texts) > 1:
                    await asyncio.gather(*(self._judge(node) for node in self._judges))
        except TimeoutError:
            self._is_complete = False
        if not self._texts:
            raise self._failure or EndpointError("no node gave an answer with any text in time")
        return self._result()

    async def _answer(self, answerers: Sequence[Node]) -> None:
        async def one(node: Node) -> None:
            reply = await self._call(node, as_messages(self._question), node.params, "answer")
            if reply is not None and (text := visible(reply)):
                self._texts.setdefault(text, []).append(node.id)

        await asyncio.gather(*(one(node) for node in answerers))

    async def _judge(self, node: Node) -> None:
        texts = list(self._texts)
        good = []
        for i, text in enumerate(texts):
            reply = await self._call(node, filter_messages(self._question, text), FILTER, "filter")
            if reply is None or is_good(reply):
                good.append(i)
            else:
                self._bad.append((node.id, i))
        rng = np.random.default_rng([self._seed, _number(node.id), _number(self._question)])
        order = [good[i] for i in rng.permutation(len(good))]
        done = []
        for first, second in pair_plan(len(order)):
            if await self._compare(node, order[first], order[second]):
                done.append((first, second))
        if self._ledger.tokens_left is None or self._ledger.tokens_left > 0:
            for first, second in bridges(len(order), done):
                await self._compare(node, order[first], order[second])

    async def _compare(self, node: Node, first: int, second: int) -> bool:
        """Ask which of two answers is better, once more if the reply says nothing."""
        texts = list(self._texts)
        messages = compare_messages(self._question, texts[first], texts[second])
        verdict: Verdict | None = None
        for _ in range(2):
            reply = await self._call(node, messages, JUDGE, "compare")
            if reply is None:
                return False
            verdict = verdict_of(reply)
            if verdict is not None:
                break
        self._comparisons.append(Comparison(node.id, first, second, verdict or "U"))
        return True

    async def _call(
        self, node: Node, prompt: Prompt, params: SamplingParams, purpose: str
    ) -> str | None:
        """Return the reply, None if the budget holds none or the call failed."""
        if self._budget.calls is not None and self._n_calls >= self._budget.calls:
            self._is_complete = False
            return None
        self._n_calls += 1
        try:
            params = replace(params, seed=_number(f"{self._seed} {node.id} {self._n_calls}") >> 11)
            if self._ledger.max_tokens is not None:
                size = await node.endpoint.count_prompt(prompt)
                left = (self._ledger.tokens_left or 0) - size
                if left < 1:
                    raise BudgetExceeded(f"a prompt of {size:,} tokens does not fit the budget")
                params = replace(params, max_tokens=min(params.max_tokens or left, left))
            request = GenerateRequest(prompt, params, purpose, self._ledger)
            return (await node.endpoint.generate(request)).text
        except CapaxError as error:
            self._is_complete = False
            self._failure = error
            return None

    def _result(self) -> SwarmResult:
        answers = tuple(self._texts)
        kept = attempts(len(answers), self._bad, self._weights)
        theta, confidence = strengths(answers, kept, self._comparisons, self._weights)
        counts = [len(authors) for authors in self._texts.values()]
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in answers]
        # Without a comparison all are equal: what most nodes gave, then by content.
        winner = min(kept, key=lambda i: (-theta[i], -counts[i], keys[i]))
        totals = self._ledger.totals
        return SwarmResult(
            answers[winner],
            answers,
            tuple(tuple(authors) for authors in self._texts.values()),
            theta,
            tuple(self._comparisons),
            tuple(self._bad),
            confidence,
            totals.tokens,
            totals.n_calls,
            self._is_complete,
        )


def attempts(n: int, bad: Sequence[tuple[str, int]], weights: Mapping[str, float]) -> list[int]:
    """Return the answers that not more than half of the weight finds to be no attempt, or all."""
    total = sum(weights.values())
    against = [sum(weights.get(judge, 0.0) for judge, i in bad if i == j) for j in range(n)]
    kept = [j for j in range(n) if against[j] <= total / 2]
    return kept or list(range(n))


def strengths(
    answers: Sequence[str], kept: Sequence[int], comparisons: Sequence[Comparison],
    weights: Mapping[str, float],
) -> tuple[tuple[float, ...], float | None]:  # fmt: skip
    """Return the strengths of the kept answers (NaN for others) and the winner's confidence.

    A function of the verdicts alone: replaying stored ones gives the same bits. Weights are brought
    to mean 1, so that the penalty weighs the same in every swarm.
    """
    place = {answer: at for at, answer in enumerate(kept)}
    judges = sorted({c.judge for c in comparisons if weights.get(c.judge, 0.0) > 0})
    theta = [float("nan")] * len(answers)
    for i in kept:
        theta[i] = 0.0
    if not judges:
        return tuple(theta), None
    tables = {judge: np.zeros((len(kept), len(kept))) for judge in judges}
    for c in comparisons:
        if c.judge in tables and c.first in place and c.second in place:
            a, b = place[c.first], place[c.second]
            tables[c.judge][a, b] += {"A": 1.0, "B": 0.0, "U": 0.5}[c.verdict]
            tables[c.judge][b, a] += {"A": 0.0, "B": 1.0, "U": 0.5}[c.verdict]
    mean = sum(weights[judge] for judge in judges) / len(judges)
    scaled = [weights[judge] / mean for judge in judges]
    texts = [answers[i] for i in kept]
    ranking = aggregate(texts, list(tables.values()), scaled)
    for at, i in enumerate(kept):
        theta[i] = float(ranking.theta[at])
    return tuple(theta), bootstrap_share(texts, list(tables.values()), scaled)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
