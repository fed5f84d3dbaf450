"""One answer, and the one that most of n answers give.

Self-consistency (Wang et al. 2022, arXiv 2203.11171) with the votes of "Think Deep, Think Fast"
(2025, arXiv 2504.14047): of all samples or of the shortest, each counting one, by its shortness, by
the model's confidence in it, or by what its length and words say of being right (`marks`, learnt
from other problems; see `scaling.calibration`). With `stop=early` the samples run beside each other
and those that cannot change the outcome any more are cancelled; with `stop=first` the first `keep`
to finish vote, which may change it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from capax.decoding.params import SamplingParams
from capax.endpoints import Choice
from capax.errors import ConfigError
from capax.methods import SPELLED, Method, register
from capax.scaling.calibration import parse_marks
from capax.scaling.strategies.strategy import Prompt, Purse, check_range
from capax.scaling.strategies.voting import (
    Reading,
    Weighing,
    shortest,
    vote_of,
    voters,
    weights,
    winner,
)

MAX_SAMPLES = 1024
MAX_RUNNING = 128


@dataclass(frozen=True)
class Single:
    """No more than one answer: what the others are compared with."""

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        choices = purse.need(await purse.ask(prompt))
        return choices[0], choices


@dataclass(frozen=True)
class Majority:
    """`n` samples; `keep`: of how many of the shortest (or first finished) the votes count.

    `temperature` takes the place of 0, with which all samples would be the same. `marks`: what
    votes=marked weigh by, bias/length/hedging/thinking/discourse.
    """

    n: int = field(default=8, metadata=SPELLED)
    votes: Weighing = "one"
    power: float = 1.0
    keep: int | None = None
    stop: Literal["all", "early", "first"] = "all"
    answer: Reading = "auto"
    temperature: float = 0.7
    marks: str | None = None

    def __post_init__(self) -> None:
        if (self.marks is not None) != self.votes.startswith("marked"):
            raise ConfigError(
                "votes=marked and votes=marked_odds need marks=..., and no other votes take it; "
                "'capax scale markers RUN --calibrate' prints both"
            )
        if self.marks is not None:
            parse_marks(self.marks)
        check_range("n", self.n, 1, MAX_SAMPLES if self.stop == "all" else MAX_RUNNING)
        check_range("power", self.power, 0.0, 10.0)
        check_range("temperature", self.temperature, 0.01, 100.0)
        if self.keep is not None:
            check_range("keep", self.keep, 1, self.n)
        if self.stop == "early" and (self.votes != "one" or self.keep is not None):
            raise ConfigError(
                "stop=early knows the outcome of plain votes only; leave out the rest"
            )

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        params = sampled(purse.params, self.temperature)
        if self.votes == "confidence":
            params = replace(params, logprobs=params.logprobs or 0)
        if self.stop == "all":
            choices = await purse.ask(prompt, self.n, params=params)
        else:
            choices = await self._race(purse, prompt, params)
        choices = list(purse.need(choices))
        return self.elect(choices), choices

    def elect(self, choices: Sequence[Choice]) -> Choice:
        """Return the winner among the answers at hand; they may be a pool's, read from disk."""
        able = voters(choices, self.answer)
        if self.keep is not None and self.stop == "all":
            able = shortest(able, self.keep)
        marks = None if self.marks is None else parse_marks(self.marks)
        votes = weights(able, self.votes, self.power, marks, self.answer)
        return winner(able, votes, self.answer)

    async def _race(self, purse: Purse, prompt: Prompt, params: SamplingParams) -> list[Choice]:
        """Run all samples at once and cancel those that are not needed; return the finished."""
        enough = self.keep or (self.n + 1) // 2
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(purse.ask(prompt, params=params)) for _ in range(self.n)]
            running = set(tasks)
            while running:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done = [choice for t in tasks if t not in running for choice in t.result()]
                if self.stop == "first":
                    is_over = len(done) >= enough
                else:
                    answers = [vote_of(choice, self.answer) for choice in done]
                    is_over = is_decided(answers, len(running))
                if is_over:
                    break
            for task in running:
                task.cancel()
        return done


def is_decided(answers: Sequence[str | None], n_running: int) -> bool:
    """Say whether the samples still running can neither overtake nor reach the leading answer."""
    counts = Counter(a for a in answers if a is not None).most_common(2)
    if not counts:
        return False
    second = counts[1][1] if len(counts) > 1 else 0
    return counts[0][1] - second > n_running


def sampled(params: SamplingParams, temperature: float) -> SamplingParams:
    """Return parameters whose samples differ from each other."""
    return params if params.temperature > 0 else replace(params, temperature=temperature)


_PAPER = "Think Deep, Think Fast (2025, arXiv 2504.14047)"
register(Method("single", "strategy", "", "One answer, as without a strategy.", Single))
register(
    Method("majority", "strategy", _PAPER, "The answer that most of n samples give.", Majority)
)
