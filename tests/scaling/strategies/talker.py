"""A model that answers from a table of replies, one per call or by a function, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from capax.endpoints import Choice, Completion, GenerateRequest, Ledger, Price, TokenScores
from capax.engine.outputs import Usage
from capax.errors import EndpointError
from capax.scaling.strategies.strategy import Prompt

Reply = Callable[[GenerateRequest, int], str]  # of a request and the number of the answer
PROMPT_TOKENS = 10


class Talker:
    """Each word is a token; an answer is cut to its limit. Fails at the calls in `fail_at`.

    `asked`: every request, in order. `delays`: seconds before an answer, by the call's number.
    """

    name = "talker"
    max_choices = 128

    def __init__(
        self,
        reply: Reply,
        *,
        fail_at: Sequence[int] = (),
        turns: Callable[[int], int] | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.asked: list[GenerateRequest] = []
        self.n_sampled = 0
        self._reply, self._fail_at, self._turns = reply, fail_at, turns

    async def count_prompt(self, prompt: Prompt) -> int:
        return PROMPT_TOKENS

    async def generate(self, request: GenerateRequest) -> Completion:
        params = request.params
        limit = params.max_tokens or 50
        number = len(self.asked)
        self.asked.append(request)
        with self.ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=PROMPT_TOKENS,
            new_tokens=params.n * limit, also=request.ledger,
        ) as call:  # fmt: skip
            usage = Usage(PROMPT_TOKENS, 0)
            try:
                for _ in range(self._turns(number) if self._turns else 1):
                    await asyncio.sleep(0)
                if number in self._fail_at:
                    raise EndpointError("no answer today")
                choices = []
                for index in range(params.n):
                    words = self._reply(request, number + index).split(" ")
                    text, reason = " ".join(words[:limit]), "stop"
                    if len(words) > limit:
                        reason = "length"
                    n_tokens = min(len(words), limit)
                    choices.append(Choice(index, text, reason, (-0.1,) * n_tokens, None, n_tokens))
                    usage = Usage(PROMPT_TOKENS, usage.completion_tokens + n_tokens)
            finally:
                self.n_sampled += usage.completion_tokens
                call.settle(usage)
        return Completion(tuple(choices), usage, 0.001, "talker")

    async def score(self, text: str) -> TokenScores:
        raise EndpointError("no probabilities")

    async def aclose(self) -> None:
        pass
