"""The engine in this process as an endpoint: requests share its steps and its kept prefixes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Self

from capax.endpoints.endpoint import (
    Choice,
    Completion,
    GenerateRequest,
    Message,
    TokenScores,
)
from capax.endpoints.ledger import Ledger, Price
from capax.engine.outputs import CompletionOutput, RequestOutput, Usage
from capax.engine.runner import Runner

if TYPE_CHECKING:
    from capax.engine.llm import LLM

MAX_QUEUE = 1 << 20  # whoever floods the engine of its own process knows what it does


class LocalEndpoint:
    """One loaded model. Enter it as an async context: a thread then runs the engine's steps.

    `price` counts operations and whatever a token is worth here; the model stays the caller's.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        name: str | None = None,
        ledger: Ledger | None = None,
        price: Price | None = None,
    ) -> None:
        self._llm = llm
        self._name = name or f"{llm.name}@local"
        self._ledger = ledger or Ledger()
        self._price = price or Price()
        self._runner = Runner(llm, max_queue=MAX_QUEUE)

    @property
    def name(self) -> str:
        return self._name

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def max_choices(self) -> int:
        return self._llm.plan.logit_rows

    async def generate(self, request: GenerateRequest) -> Completion:
        llm, params = self._llm, request.params
        ids = await self._prompt_ids(request.prompt)
        room = max(llm.context_len - len(ids), 1)
        new_tokens = params.n * (room if params.max_tokens is None else params.max_tokens)
        started = time.monotonic()
        with self._ledger.call(
            self._name,
            request.purpose,
            self._price,
            prompt_tokens=len(ids),
            new_tokens=new_tokens,
            also=request.ledger,
        ) as call:
            stream = self._runner.stream(ids, params)
            output: RequestOutput | None = None
            usage = Usage(len(ids), 0)
            try:
                async with aclosing(stream):
                    async for pieces in stream:
                        new = sum(len(piece.token_ids) for piece in pieces)
                        usage = Usage(len(ids), usage.completion_tokens + new)
                        output = pieces[-1].output
            finally:  # also when it was cancelled: what was sampled is known here
                call.settle(usage if output is None else output.usage)
        assert output is not None  # the last piece of a stream carries it
        return Completion(
            tuple(map(_choice, output.outputs)), output.usage, time.monotonic() - started, llm.name
        )

    async def count_prompt(self, prompt: str | Sequence[Message]) -> int:
        return len(await self._prompt_ids(prompt))

    async def _prompt_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        if isinstance(prompt, str):
            return self._llm.tokenizer.encode(prompt)
        return await asyncio.to_thread(self._llm.chat_ids, prompt)

    async def score(self, text: str) -> TokenScores:
        ids = self._llm.tokenizer.encode(text)
        with self._ledger.call(
            self._name, "score", self._price, prompt_tokens=len(ids), new_tokens=0
        ) as call:
            score = await asyncio.to_thread(self._llm.score, ids)
            call.settle(Usage(len(ids), 0))
        pieces = [self._llm.tokenizer.token_bytes(token) for token in score.token_ids]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        whole = b"".join(pieces)
        return TokenScores(
            tuple(piece.decode("utf-8", "replace") for piece in pieces),
            tuple(len(whole[:end].decode("utf-8", "ignore")) for end in ends[:-1]),
            tuple(score.logprobs),
            tuple(score.is_greedy),
        )

    async def aclose(self) -> None:
        await self.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        await self._runner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.__aexit__(kind, error, trace)


def _choice(output: CompletionOutput) -> Choice:
    logprobs = None
    if output.logprobs is not None:
        chosen = zip(output.logprobs, output.token_ids, strict=True)
        logprobs = tuple(position[token].logprob for position, token in chosen)
    n_tokens = len(output.token_ids)
    return Choice(output.index, output.text, output.finish_reason, logprobs, n_tokens=n_tokens)
