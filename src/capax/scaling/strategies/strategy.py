"""The seam of strategies: a question in, one answer out, under one budget of tokens.

A strategy asks an endpoint as often as it likes, but only through a `Purse`. The purse gives each
call what is left of the budget as its limit, books what it took, and gives fewer answers, or none,
once the budget or the endpoint is exhausted; a strategy makes the best of those it got.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from capax.decoding.params import SamplingParams
from capax.endpoints import BudgetExceeded, Choice, Endpoint, GenerateRequest, Ledger, Message
from capax.engine.outputs import Usage
from capax.errors import CapaxError, ConfigError, EndpointError
from capax.methods import Chosen, parse_method

if TYPE_CHECKING:
    from capax.endpoints.ledger import Totals
    from capax.scaling.swarm.members import Members

Prompt = str | Sequence[Message]
MAX_SHOWN_CHARS = 4000  # of each answer that a later prompt shows


@dataclass(frozen=True, slots=True)
class StrategyAnswer:
    """What a strategy answers, and everything it took.

    `usage` sums all its calls (tokens; a call that failed counts what it reserved), `n_calls`
    counts them. `is_complete`: it got every answer it asked for; otherwise the budget ended or a
    call failed, and this is the best of what there was. `candidates`: the answers it chose from.
    `by_purpose`: sums of calls of one purpose. `details`: what the strategy says of its choice,
    ready for JSON.
    """

    text: str
    finish_reason: str
    usage: Usage
    n_calls: int
    is_complete: bool
    candidates: tuple[str, ...] = ()
    by_purpose: Mapping[str, Totals] = field(default_factory=dict, compare=False)
    details: Mapping[str, Any] | None = None


class Strategy(Protocol):
    """The options of a strategy are the strategy; safe to use for many questions at once."""

    async def choose(self, purse: Purse, prompt: Prompt) -> tuple[Choice, Sequence[Choice]]:
        """Ask through `purse`; return the chosen answer and all it was chosen from.

        Raises what `Purse.need` does if there is nothing to choose from.
        """
        ...


async def answer(
    strategy: Strategy,
    endpoint: Endpoint,
    prompt: Prompt,
    params: SamplingParams,
    *,
    max_total_tokens: int | None = None,
    members: Members | None = None,
) -> StrategyAnswer:
    """Answer a prompt or a conversation by a strategy.

    `params` are those of each answer, its n must be 1. `max_total_tokens` caps prompt and new
    tokens of all calls together. `members`: nodes that a strategy may name. Raises BudgetExceeded
    if not one answer fits, and what the first call raised if there is no answer at all.
    """
    if params.n != 1:
        raise ConfigError(f"n is {params.n} but a strategy gives one answer; leave n out")
    purse = Purse(endpoint, params, max_total_tokens, members=members)
    chosen, candidates = await strategy.choose(purse, prompt)
    totals = purse.ledger.totals
    usage = Usage(totals.prompt_tokens, totals.completion_tokens, totals.cached_tokens)
    return StrategyAnswer(
        chosen.text,
        chosen.finish_reason,
        usage,
        totals.n_calls,
        purse.is_complete,
        tuple(c.text for c in candidates),
        purse.ledger.by_purpose(),
        purse.details,
    )


@dataclass
class Purse:
    """The calls of one answer. `params`: of an answer; `is_complete`: nothing was cut short.

    `details`: what the strategy wants to be known of its choice.
    """

    endpoint: Endpoint
    params: SamplingParams
    max_total_tokens: int | None = None
    is_complete: bool = True
    members: Members | None = None
    details: Mapping[str, Any] | None = None
    ledger: Ledger = field(init=False)
    _failure: Exception | None = field(default=None, init=False)
    _n_asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.params.seed is None:
            self.params = self.params.with_seed(secrets.randbits(53))
        self.ledger = Ledger(max_tokens=self.max_total_tokens)

    async def ask(
        self, prompt: Prompt, n: int = 1, *, purpose: str = "answer",
        params: SamplingParams | None = None,
    ) -> list[Choice]:  # fmt: skip
        """Return up to `n` independent answers to one prompt: fewer if the budget ends.

        An answer may be shorter than its limit asks for when little is left; what the earlier ones
        did not use goes to the later ones. `index` counts the answers of this call.
        """
        params = params or self.params
        seed = _derived(self.params.seed or 0, self._n_asked)  # before anything can interleave
        self._n_asked += 1
        size = await self.endpoint.count_prompt(prompt)
        choices: list[Choice] = []
        while len(choices) < n:
            wanted = min(n - len(choices), self.endpoint.max_choices)
            part = self._affordable(params, size, wanted)
            if part is None:
                self._stop(BudgetExceeded(
                    f"an answer to a prompt of {size:,} tokens does not fit the budget of "
                    f"{self.max_total_tokens:,} tokens; raise it"
                ))  # fmt: skip
                break
            got = await self._call(prompt, part.with_seed(_derived(seed, len(choices))), purpose)
            if not got:
                break
            choices += (replace(c, index=len(choices) + i) for i, c in enumerate(got))
        return choices

    async def ask_each(
        self, prompts: Sequence[Prompt], *, purpose: str = "answer",
        params: SamplingParams | None = None,
    ) -> list[Choice | None]:  # fmt: skip
        """Return one answer to each prompt, None where the budget or the endpoint gave none.

        All are asked at once, or one after another if the budget might not hold them all.
        """
        params = params or self.params
        left = self.ledger.tokens_left
        if left is not None and params.max_tokens is not None:
            sizes = [await self.endpoint.count_prompt(prompt) for prompt in prompts]
            left -= sum(sizes) + len(prompts) * params.max_tokens
        if left is None or (left >= 0 and params.max_tokens is not None):
            asked = [self.ask(p, purpose=purpose, params=params) for p in prompts]
            found = await asyncio.gather(*asked)
        else:
            found = [await self.ask(p, purpose=purpose, params=params) for p in prompts]
        return [choices[0] if choices else None for choices in found]

    def need(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Return `choices`; raises what kept them from coming if there are none."""
        if choices:
            return choices
        raise self._failure or EndpointError(f"{self.endpoint.name} gave no answer")

    def _affordable(self, params: SamplingParams, size: int, n: int) -> SamplingParams | None:
        """Return the next call's parameters: as many answers as fit whole, at least a short one."""
        left = self.ledger.tokens_left
        if left is not None:
            room = left - size
            if room < 1:
                return None
            if params.max_tokens is None:
                n = min(n, room)
                limit = room // n
            elif room < params.max_tokens:
                n, limit = 1, room
                self.is_complete = False
            else:
                n, limit = min(n, room // params.max_tokens), params.max_tokens
            params = replace(params, max_tokens=limit, min_tokens=min(params.min_tokens, limit))
        return replace(params, n=n)

    async def _call(self, prompt: Prompt, params: SamplingParams, purpose: str) -> list[Choice]:
        request = GenerateRequest(prompt, params, purpose, self.ledger)
        try:
            completion = await self.endpoint.generate(request)
        except CapaxError as error:
            self._stop(error)
            return []
        good = [c for c in completion.choices if c.finish_reason != "error"]
        if len(good) < len(completion.choices):
            self._stop(EndpointError(f"{self.endpoint.name} gave an answer with an error"))
        return good

    def _stop(self, error: Exception) -> None:
        self.is_complete = False
        self._failure = error


def _derived(seed: int, number: int) -> int:
    """Return a seed of its own for each number; 0 keeps the seed."""
    if number == 0:
        return seed
    digest = hashlib.sha256(f"{seed}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def parse_strategy(spec: str) -> Chosen:
    """Return the strategy that `spec` chooses: 'single', 'majority:n=8'; `.options` is it.

    Raises ConfigError naming what is wrong and what there is.
    """
    if not isinstance(spec, str):
        raise ConfigError(f"strategy {spec!r:.60} is not a strategy's name")
    return parse_method("strategy", spec)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError if an option is outside its closed range."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value} but must be {low:g} to {high:g}")


def as_messages(prompt: Prompt) -> list[Message]:
    """Return a prompt as a conversation."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def followed_by(prompt: Prompt, said: str, request: str) -> Prompt:
    """Return the prompt, what was said to it, and a further request; text stays text."""
    if isinstance(prompt, str):
        return f"{prompt}{said}\n\n{request}\n"
    return [
        *prompt, {"role": "assistant", "content": said}, {"role": "user", "content": request}
    ]  # fmt: skip


def with_answers(prompt: Prompt, answers: Sequence[str], request: str) -> Prompt:
    """Return the prompt, numbered answers to it (their ends, if they are long) and a request."""
    shown = "\n\n".join(
        f"Answer {i}:\n{text[-MAX_SHOWN_CHARS:]}" for i, text in enumerate(answers, 1)
    )
    if isinstance(prompt, str):
        return f"{prompt}\n\n{shown}\n\n{request}\n"
    return [*prompt, {"role": "user", "content": f"{shown}\n\n{request}"}]
