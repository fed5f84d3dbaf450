"""One question to a swarm: answers, comparisons by every judge, and the strongest answer.

Every call is booked in one ledger under the budget's cap, before it is made; when tokens, calls or
time are over, the answer is the best under the comparisons made so far. Judges see the question and
two answers, never who wrote them, what a vote says or what is right.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from capax.decoding.params import SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints import BudgetExceeded, Choice, Endpoint, GenerateRequest, Ledger
from capax.errors import CapaxError, ConfigError, EndpointError
from capax.scaling.strategies.strategy import Prompt
from capax.scaling.swarm.bradley_terry import aggregate, bootstrap_share, difference_sd
from capax.scaling.swarm.judging import CHAT, Prompts, Verdict, is_good
from capax.scaling.swarm.pairs import bridges, pair_plan

JUDGE = SamplingParams(max_tokens=160, temperature=0.3)
FILTER = SamplingParams(max_tokens=24, temperature=0.0)
MANY_JUDGES = 5  # from so many on, redrawing them says how certain the winner is
WIDE_L2 = 1.0  # penalty of the fit that judges certainty with fewer
JudgeMode = Literal["reason", "letters"]


@dataclass(frozen=True)
class Node:
    """A member: it answers, judges, or both. `params` are those of its answers."""

    id: str
    endpoint: Endpoint
    params: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=512))
    answers: bool = True
    judges: bool = True
    prompts: Prompts = CHAT


@dataclass(frozen=True)
class Budget:
    """What one question may take: tokens of all calls, calls, seconds. None: no limit."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One verdict: `first` was shown as A.

    `share`: how far it is A's, 0 to 1, where the letters' probabilities were asked for.
    """

    judge: str
    first: int
    second: int
    verdict: Verdict
    share: float | None = None

    @property
    def of_first(self) -> float:
        """What the first answer gets of this comparison; the second gets the rest."""
        return {"A": 1.0, "B": 0.0, "U": 0.5}[self.verdict] if self.share is None else self.share


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
    judge_mode: JudgeMode = "reason",
    stop_at: float | None = None,
    answers: Mapping[str, str] | None = None,
    planted: Sequence[str] = (),
    standing: Mapping[str, float] | None = None,
    max_answerers: int | None = None,
    prompt: Prompt | None = None,
    ledger: Ledger | None = None,
) -> SwarmResult:
    """Answer a question by consensus.

    `weights`: of judges by id (`reputation.weights`), all 1 if left out; a judge of weight 0 is not
    asked. `judge_mode`: a judge writes its reason and a letter, or the probabilities of the letters
    A and B count, two calls of one token each. `stop_at`: ask one judge after another, and none
    more once the winner is as certain as this (`certainty`). `answers`: by node id, read already;
    `planted`: further ones that no node gave. `standing`: what a node's answer weighs where the
    comparisons say nothing (`reputation.standings`), all 1 if left out; with `max_answerers` only
    so many nodes of the highest standing answer. `prompt`: the conversation whose question judges
    are shown as `question`, for nodes that are asked in chats. `ledger`: an empty one, of
    which the cap holds instead of the budget's tokens. Raises ConfigError without nodes that
    answer, and what a call raised if none answered.
    """
    if len({node.id for node in nodes}) < len(nodes):
        raise ConfigError("two nodes have the same id")
    answerers = [node for node in nodes if node.answers]
    if not answerers:
        raise ConfigError("no node answers; a swarm needs at least one that does")
    if max_answerers is not None:
        if max_answerers < 1:
            raise ConfigError(f"max_answerers is {max_answerers} but must be at least 1")
        answerers = best_standing(answerers, standing or {}, max_answerers, seed)
    if stop_at is not None and not 0.5 <= stop_at <= 1:
        raise ConfigError(f"stop_at is {stop_at} but must be 0.5 to 1")
    if judge_mode == "letters":
        for node in nodes:
            if node.judges and node.prompts.letters is None:
                raise ConfigError(
                    f"node {node.id!r:.60} judges in a form of its own, which has no letters; name "
                    "them there, or use judge mode 'reason'"
                )
    asked = _Round(
        question, nodes, budget or Budget(), weights, seed, judge_mode, stop_at,
        dict(standing or {}), prompt, ledger,
    )  # fmt: skip
    for text in planted:
        asked.texts.setdefault(text, [])
    return await asked.run(answerers, answers or {})


class _Round:
    """One question on its way."""

    def __init__(
        self, question: str, nodes: Sequence[Node], budget: Budget,
        weights: Mapping[str, float] | None, seed: int, judge_mode: JudgeMode,
        stop_at: float | None, standing: Mapping[str, float], prompt: Prompt | None,
        ledger: Ledger | None,
    ) -> None:  # fmt: skip
        self._standing = standing
        self._prompt = prompt
        self._judge_mode = judge_mode
        self._stop_at = stop_at
        self._question = question
        self._budget = budget
        self._seed = seed
        self._ledger = ledger or Ledger(max_tokens=budget.tokens)
        self._n_calls = 0
        self._is_complete = True
        self._failure: CapaxError | None = None
        self._gone: set[str] = set()  # nodes whose endpoint failed: they are not asked any more
        given = {node.id: 1.0 for node in nodes} if weights is None else weights
        self._judges = [n for n in nodes if n.judges and given.get(n.id, 0.0) > 0]
        self._weights = {node.id: given[node.id] for node in self._judges}
        self.texts: dict[str, list[str]] = {}
        self._comparisons: list[Comparison] = []
        self._bad: list[tuple[str, int]] = []

    async def run(self, answerers: Sequence[Node], given: Mapping[str, str]) -> SwarmResult:
        try:
            async with asyncio.timeout(self._budget.seconds):
                await self._answer(answerers, given)
                if len(self.texts) > 1:
                    await self._judge_all()
        except TimeoutError:
            self._is_complete = False
        if not self.texts:
            raise self._failure or EndpointError("no node gave an answer with any text in time")
        return self._result()

    async def _judge_all(self) -> None:
        if self._stop_at is None:
            await asyncio.gather(*(self._judge(node) for node in self._judges))
            return
        order = sorted(self._judges, key=lambda n: _number(f"{self._seed} {n.id}"))
        for node in order:
            await self._judge(node)
            if self._certainty() >= self._stop_at:
                return

    def _certainty(self) -> float:
        answers = list(self.texts)
        kept = attempts(len(answers), self._bad, self._weights)
        return certainty(answers, kept, self._comparisons, self._weights)

    async def _answer(self, answerers: Sequence[Node], given: Mapping[str, str]) -> None:
        async def one(node: Node) -> None:
            text = given.get(node.id, "")
            if node.id not in given:
                asked = node.prompts.answer(self._question)
                if self._prompt is not None and not isinstance(asked, str):
                    asked = self._prompt
                reply = await self._call(node, asked, node.params, "answer")
                text = "" if reply is None else node.prompts.read(reply)
            if text:
                self.texts.setdefault(text, []).append(node.id)

        await asyncio.gather(*(one(node) for node in answerers))

    async def _judge(self, node: Node) -> None:
        texts = list(self.texts)
        good = []
        for i, text in enumerate(texts):
            asked = node.prompts.attempt(self._question, text)
            reply = await self._call(node, asked, FILTER, "filter") if asked is not None else None
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
        texts = list(self.texts)
        messages = node.prompts.compare(self._question, texts[first], texts[second])
        if self._judge_mode == "letters":
            share = await self._letters(node, messages)
            if share is None:
                return False
            self._comparisons.append(compared_by_letters(node.id, first, second, share))
            return True
        verdict: Verdict | None = None
        for _ in range(2):
            reply = await self._call(node, messages, JUDGE, "compare")
            if reply is None:
                return False
            verdict = node.prompts.verdict(reply)
            if verdict is not None:
                break
        self._comparisons.append(Comparison(node.id, first, second, verdict or "U"))
        return True

    async def _letters(self, node: Node, prompt: Prompt) -> float | None:
        """Return P(A) / (P(A) + P(B)) where the verdict stands, None if a call failed."""
        if node.prompts.thought_tokens:
            params = SamplingParams(max_tokens=node.prompts.thought_tokens, temperature=0.0)
            thought = await self._call(node, prompt, params, "compare")
            if thought is None:
                return None
            prompt = continued(prompt, thought)
        logs = []
        for letter in node.prompts.letters or ():
            form = StructuredOutputs(choice=[letter])
            params = SamplingParams(
                max_tokens=1, temperature=0.0, logprobs=0, structured_outputs=form
            )
            choice = await self._reply(node, prompt, params, "compare")
            if choice is None or not choice.logprobs:
                return None
            logs.append(choice.logprobs[0])
        return 1 / (1 + math.exp(min(logs[1] - logs[0], 700.0)))

    async def _call(
        self, node: Node, prompt: Prompt, params: SamplingParams, purpose: str
    ) -> str | None:
        choice = await self._reply(node, prompt, params, purpose)
        return None if choice is None else choice.text

    async def _reply(
        self, node: Node, prompt: Prompt, params: SamplingParams, purpose: str
    ) -> Choice | None:
        """Return the reply, None if the budget holds none or the call failed."""
        if node.id in self._gone:
            return None
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
            return (await node.endpoint.generate(request)).choices[0]
        except CapaxError as error:
            self._is_complete = False
            self._failure = error
            if isinstance(error, EndpointError):  # it has been tried again where that may help
                self._gone.add(node.id)
            return None

    def _result(self) -> SwarmResult:
        answers = tuple(self.texts)
        kept = attempts(len(answers), self._bad, self._weights)
        theta, confidence = strengths(answers, kept, self._comparisons, self._weights)
        counts = [
            sum(self._standing.get(author, 1.0) for author in authors)
            for authors in self.texts.values()
        ]
        winner = strongest(answers, kept, theta, counts)
        totals = self._ledger.totals
        return SwarmResult(
            answers[winner],
            answers,
            tuple(tuple(authors) for authors in self.texts.values()),
            theta,
            tuple(self._comparisons),
            tuple(self._bad),
            confidence,
            totals.tokens,
            totals.n_calls,
            self._is_complete,
        )


def compared_by_letters(judge: str, first: int, second: int, share: float) -> Comparison:
    """Return the comparison in which a judge gives the first answer this share."""
    letter: Verdict = "A" if share > 0.5 else "B" if share < 0.5 else "U"
    return Comparison(judge, first, second, letter, share)


def best_standing(
    nodes: Sequence[Node], standing: Mapping[str, float], most: int, seed: int
) -> list[Node]:
    """Return the `most` nodes of the highest standing, equal ones drawn by the seed."""
    order = sorted(nodes, key=lambda n: (-standing.get(n.id, 1.0), _number(f"{seed} {n.id}")))
    return order[:most]


def continued(prompt: Prompt, thought: str) -> Prompt:
    """Return the prompt after which a judge has written its thought."""
    if isinstance(prompt, str):
        return prompt + thought
    return [*prompt, {"role": "assistant", "content": thought}]


def strongest(
    answers: Sequence[str], kept: Sequence[int], theta: Sequence[float], counts: Sequence[float]
) -> int:
    """Return the strongest of the kept answers.

    Equal ones, as all are without a comparison, go by how many gave them (or what those weigh),
    then by content: never by the order they came in.
    """
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in answers]
    return min(kept, key=lambda i: (-theta[i], -counts[i], keys[i]))


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
    theta = [float("nan")] * len(answers)
    for i in kept:
        theta[i] = 0.0
    tables, scaled = tables_of(kept, comparisons, weights)
    if not tables:
        return tuple(theta), None
    texts = [answers[i] for i in kept]
    ranking = aggregate(texts, tables, scaled)
    for at, i in enumerate(kept):
        theta[i] = float(ranking.theta[at])
    return tuple(theta), bootstrap_share(texts, tables, scaled)


def certainty(
    answers: Sequence[str], kept: Sequence[int], comparisons: Sequence[Comparison],
    weights: Mapping[str, float],
) -> float:  # fmt: skip
    """Return how certain the winner is, 0 without a comparison.

    With five judges and more the share of redrawn swarms that it wins. Fewer say too little about
    each other: then Phi((theta_1 - theta_2) / sd) of a fit with a penalty of 1, which one judge
    cannot drive to certainty.
    """
    tables, scaled = tables_of(kept, comparisons, weights)
    if not tables or len(kept) < 2:
        return 0.0
    texts = [answers[i] for i in kept]
    if len(tables) >= MANY_JUDGES:
        return bootstrap_share(texts, tables, scaled) or 0.0
    ranking = aggregate(texts, tables, scaled, WIDE_L2)
    best, second = ranking.order[:2]
    pooled = sum(w * t for w, t in zip(scaled, tables, strict=True))
    sd = difference_sd(np.asarray(pooled), ranking.theta, best, second, WIDE_L2)
    return 0.5 * (1 + math.erf((ranking.theta[best] - ranking.theta[second]) / sd / math.sqrt(2)))


def tables_of(
    kept: Sequence[int], comparisons: Sequence[Comparison], weights: Mapping[str, float]
) -> tuple[list[np.ndarray], list[float]]:
    """Return each judge's table of wins among the kept answers, and its weight (mean 1)."""
    place = {answer: at for at, answer in enumerate(kept)}
    judges = sorted({c.judge for c in comparisons if weights.get(c.judge, 0.0) > 0})
    if not judges:
        return [], []
    tables = {judge: np.zeros((len(kept), len(kept))) for judge in judges}
    for c in comparisons:
        if c.judge in tables and c.first in place and c.second in place:
            a, b = place[c.first], place[c.second]
            tables[c.judge][a, b] += c.of_first
            tables[c.judge][b, a] += 1 - c.of_first
    mean = sum(weights[judge] for judge in judges) / len(judges)
    return list(tables.values()), [weights[judge] / mean for judge in judges]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
