"""A request answered by a strategy: several calls inside, one ordinary answer outside.

The server's own (`capax serve --strategy`) takes part where it can; a request may name another, in
its field `strategy` or as `model: "NAME@STRATEGY"`, and cap all tokens of all calls by
`max_total_tokens`. The forms of optillm that we have, such as `moa-NAME`, are understood too. The
inner calls are ordinary generations of the same request: same tenant, same
queue, cancelled when the client leaves. Usage is the sum over all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel
from starlette.requests import Request

from capax.decoding.params import INT32_MAX, Limits, SamplingParams
from capax.endpoints import (
    Choice,
    Completion,
    GenerateRequest,
    Ledger,
    Message,
    Price,
    TokenScores,
)
from capax.engine.outputs import CompletionOutput, RequestOutput, Usage
from capax.errors import ConfigError
from capax.methods import Chosen
from capax.scaling.strategies.strategy import Prompt, StrategyAnswer, answer, parse_strategy
from capax.scaling.strategies.swarm import Swarm
from capax.scaling.swarm.members import EVERY
from capax.serving.chunks import ChunkWriter, envelope
from capax.serving.errors import ApiError, check_model, invalid
from capax.serving.fields import number
from capax.serving.generation import Generation, check_piece, finished, submit
from capax.serving.nodes import PREFIX, NodesFile
from capax.serving.prompts import check_fits
from capax.serving.shape import AnswerParser
from capax.serving.sse import DONE
from capax.serving.state import Server, server_of

SEPARATOR = "@"  # between the model and the strategy in `model`
# What optillm calls what we have; it writes the name before the model, with a '-' between.
OPTILLM_NAMES = {
    "self_consistency": "majority",
    "majority_voting": "majority",
    "bon": "best",
    "moa": "mixture",
}
TOTAL_TOKENS = number("max_total_tokens", Limits(1, INT32_MAX, is_integer=True))
WHOLE_SWARM = f"swarm:nodes={EVERY}"
_FORMED = ("answer", "revise", "mix")  # calls whose text may be the answer: they keep its form


class StrategyFields(BaseModel):
    """What a request says of strategies."""

    strategy: str | None = None
    max_total_tokens: Annotated[int | None, TOTAL_TOKENS] = None


def strategy_for(
    server: Server, model: str | None, fields: StrategyFields, obstacle: str | None
) -> Chosen | None:
    """Return the strategy that answers a request for `model`; None: the model alone.

    `obstacle`: the field that no strategy can serve, if the request has one. Raises ApiError 404
    for a model that is not served, 400 for a strategy that does not exist or cannot take part.
    """
    named = named_strategy(server, model)
    return _strategy_of(server, fields.strategy or named, fields.max_total_tokens, obstacle)


def _strategy_of(
    server: Server, asked: str | None, max_total_tokens: int | None, obstacle: str | None
) -> Chosen | None:
    """The server's own strategy leaves a request with an obstacle to the model."""
    spec = server.config.strategy if asked is None else asked
    if spec is None:
        if max_total_tokens is not None:
            raise invalid(
                "max_total_tokens caps the calls of a strategy, and none is named; name one in "
                "strategy, or use max_tokens",
                param="max_total_tokens",
            )
        return None
    try:
        chosen = parse_strategy(spec)
        check_nodes(chosen, None if server.nodes is None else server.nodes.file)
    except ConfigError as error:
        raise invalid(str(error), param="strategy") from None
    if obstacle is None:
        return chosen
    if asked is not None or max_total_tokens is not None:
        raise invalid(
            f"{obstacle} cannot be had from a strategy, which makes one answer out of several; "
            f"leave out {obstacle} or the strategy",
            param=obstacle,
        )
    return None


def asks_nodes(chosen: Chosen | None) -> bool:
    """Say whether a strategy asks nodes rather than the server's model."""
    return chosen is not None and isinstance(chosen.options, Swarm) and bool(chosen.options.nodes)


def check_nodes(chosen: Chosen, file: NodesFile | None) -> None:
    """Raise ConfigError if a strategy names nodes that there are not."""
    if not asks_nodes(chosen):
        return
    if file is None:
        raise ConfigError(
            f"{chosen} names nodes, and the server has none; start it with --nodes FILE"
        )
    file.check(chosen.options.nodes)


def named_strategy(server: Server, model: str | None) -> str | None:
    """Return the strategy in the name of a model, as `NAME@STRATEGY`, `bon-NAME` or `swarm:NAME`.

    Raises ApiError 404 if the model is not served.
    """
    if model is None or model in server.model_names:  # a name of its own may look like either
        return None
    if server.nodes is not None and model == PREFIX + server.nodes.file.name:
        return WHOLE_SWARM
    name, separator, spec = model.rpartition(SEPARATOR)
    if separator:
        check_model(server, name)
        return spec
    prefix, separator, name = model.partition("-")
    if prefix in OPTILLM_NAMES and name in server.model_names:
        return OPTILLM_NAMES[prefix]
    check_model(server, model)
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of every inner call. `ids_of`: tokens of a conversation."""

    request: Request
    generation: Generation  # of the request itself; prompt and parameters vary
    ids_of: Callable[[Sequence[Message]], Awaitable[list[int]]]
    parser: Callable[[], AnswerParser] | None  # splits a choice's text into fields


class ServedEndpoint:
    """The server's model as the endpoint of one request's strategy."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._server = server_of(asked.request)
        self._ledger = Ledger()

    @property
    def name(self) -> str:
        return self._server.model_name

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @property
    def max_choices(self) -> int:
        return self._server.llm.plan.logit_rows

    async def count_prompt(self, prompt: Prompt) -> int:
        return len(await self._ids(prompt))

    async def generate(self, request: GenerateRequest) -> Completion:
        ids = await self._ids(request.prompt)
        params, own = request.params, self._asked.generation
        context_len = self._server.llm.context_len
        check_fits(len(ids), None, context_len, param="messages")
        room = context_len - len(ids)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        generation = Generation(
            ids,
            replace(params, max_tokens=limit, min_tokens=min(params.min_tokens, limit)),
            own.cache_salt,
            own.priority,
            own.constraint if request.purpose in _FORMED else None,
        )
        started = time.monotonic()
        with self._ledger.call(
            self.name, request.purpose, Price(), prompt_tokens=len(ids),
            new_tokens=params.n * limit, also=request.ledger,
        ) as call:  # fmt: skip
            submitted = await submit(self._asked.request, [generation])
            output: RequestOutput | None = None
            n_new = 0
            try:
                async for pieces in submitted.only:
                    for piece in pieces:
                        check_piece(piece)
                        n_new += len(piece.token_ids)
                    output = pieces[-1].output
            finally:  # also when it was cancelled: what was sampled is known here
                call.settle(Usage(len(ids), n_new) if output is None else output.usage)
                await submitted.aclose()
        output = finished(output)
        choices = tuple(map(self._choice, output.outputs))
        return Completion(choices, output.usage, time.monotonic() - started, self.name)

    async def score(self, text: str) -> TokenScores:
        raise ApiError(501, "a strategy that scores texts cannot be served")

    async def aclose(self) -> None:
        return None

    async def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):  # a node with a form of its own
            return self._server.llm.tokenizer.encode(prompt)
        return await self._asked.ids_of(prompt)

    def _choice(self, output: CompletionOutput) -> Choice:
        """Return a choice without what the model thought: that is no part of an answer."""
        text, reasoning = output.text, None
        reason: str = output.finish_reason
        if self._asked.parser is not None:
            parser = self._asked.parser()
            parser.push(output.text, len(output.token_ids))
            _, ended = parser.finish(output.finish_reason)
            message = parser.message()
            text, reasoning = message.get("content") or "", message.get("reasoning_content")
            reason = ended
        logprobs = None
        if output.logprobs is not None:
            chosen = zip(output.logprobs, output.token_ids, strict=True)
            logprobs = tuple(position[token].logprob for position, token in chosen)
        return Choice(output.index, text, reason, logprobs, reasoning, len(output.token_ids))


class StrategyRun:
    """One run of a strategy for a request."""

    def __init__(
        self,
        chosen: Chosen,
        asked: Asked,
        messages: Sequence[Message],
        max_total_tokens: int | None,
    ) -> None:
        self.server = server_of(asked.request)
        if asks_nodes(chosen) and asked.generation.constraint is not None:
            raise invalid(
                "a form of the answer cannot be had from nodes, which have tokens of their own; "
                "leave out the form or the nodes",
                param="strategy",
            )
        self._chosen = chosen
        self._endpoint = ServedEndpoint(asked)
        self._messages = messages
        self._params: SamplingParams = asked.generation.params
        self._max_total_tokens = max_total_tokens

    async def answer(self) -> StrategyAnswer:
        """Run it. Whatever ends the request meanwhile ends all inner calls."""
        self.server.metrics.strategy_answers += 1
        nodes = self.server.nodes
        task = asyncio.ensure_future(
            answer(
                self._chosen.options,
                self._endpoint,
                self._messages,
                self._params,
                max_total_tokens=self._max_total_tokens,
                members=None if nodes is None else nodes.members(self._endpoint),
            )
        )
        try:
            return await task
        finally:
            task.cancel()

    def capacity(self, got: StrategyAnswer) -> dict[str, Any]:
        """Return the `capax` object of an answer: memory held now, what was spent on what."""
        spent = [
            {
                "method": str(self._chosen),
                "purpose": purpose,
                "calls": totals.n_calls,
                "prompt_tokens": totals.prompt_tokens,
                "completion_tokens": totals.completion_tokens,
            }
            for purpose, totals in got.by_purpose.items()
        ]
        memory = self.server.llm.measured_memory()
        return {
            "memory": {f"{kind}_bytes": n for kind, n in memory.items()},
            "strategy": spent,
            "is_complete": got.is_complete,
        }


class StrategicAnswer:
    """The answer to one chat request, whole or in chunks; the winner comes in one piece."""

    def __init__(self, run: StrategyRun, *, includes_usage: bool) -> None:
        self._server = run.server
        self._run = run
        self._includes_usage = includes_usage

    async def whole(self) -> dict[str, Any]:
        """Run the strategy and return the response's JSON."""
        got = await self._run.answer()
        message = {"role": "assistant", "content": got.text, "refusal": None}
        choice = {
            "index": 0, "message": message, "logprobs": None, "finish_reason": got.finish_reason,
        }  # fmt: skip
        return envelope(self._server, "chat.completion", is_stream=False) | {
            "choices": [choice],
            **self._figures(got),
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the stream's bytes: the role at once, the answer when it is chosen."""
        writer = ChunkWriter(self._server, "chat.completion", 1, with_usage=self._includes_usage)
        empty = {"index": 0, "logprobs": None, "finish_reason": None}
        yield writer.choice({**empty, "delta": {"role": "assistant", "content": ""}})
        got = await self._run.answer()
        if got.text:
            yield writer.text(0, got.text)
        figures = self._figures(got)
        last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": got.finish_reason}
        if self._includes_usage:
            yield writer.choice(last) + writer.without_choice(figures) + DONE
        else:
            del figures["usage"]
            yield writer.choice(last, figures) + DONE

    def _figures(self, got: StrategyAnswer) -> dict[str, Any]:
        return {
            "usage": {
                "prompt_tokens": got.usage.prompt_tokens,
                "completion_tokens": got.usage.completion_tokens,
                "total_tokens": got.usage.total_tokens,
                "prompt_tokens_details": {"cached_tokens": got.usage.cached_tokens},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
            "capax": self._run.capacity(got),
            **({} if got.details is None else {"x_swarm": got.details}),
        }
