"""One answer of one choice, for the protocols that speak of messages in other words than chats.

`/v1/responses` and `/v1/messages` translate their bodies to a `ChatRequest`, which `chat.prepare`
turns into what the engine is asked for; what comes back are the deltas of a chat, from the model or
from a strategy that asks it several times.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from pydantic import ValidationError

from capax.engine.outputs import RequestOutput, Usage
from capax.serving.body import refusal
from capax.serving.chat import (
    ChatRequest,
    Turn,
    obstacle,
    prepare,
    strategy_run,
)
from capax.serving.errors import invalid
from capax.serving.fields import SamplingFields
from capax.serving.generation import Submitted, capacity_of, check_piece, finished, submit
from capax.serving.reasoning import Start
from capax.serving.shape import AnswerParser, Delta
from capax.serving.shaping import MessageParser
from capax.serving.state import Server, server_of
from capax.serving.strategies import StrategyFields, StrategyRun, strategy_for


class TurnFields(SamplingFields, StrategyFields):
    """What the bodies of both protocols share."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended and what it took. `token_ids`: its own, none if several calls made it."""

    reason: str  # 'stop', 'length' or 'tool_calls'
    usage: Usage
    reasoning_tokens: int
    token_ids: list[int]
    capacity: dict[str, Any]  # the `capax` object


class Answer(Protocol):
    """An answer on its way."""

    def deltas(self) -> AsyncGenerator[list[Delta], None]:
        """Yield what the answer gains, everything that is ready together in one list."""
        ...

    @property
    def ending(self) -> Ending:
        """After the deltas."""
        ...

    async def aclose(self) -> None:
        """End the request, also when nobody has begun to read."""
        ...


async def read(answer: Answer, take: Callable[[list[Delta]], object]) -> Ending:
    """Hand every delta to `take`, and end the request, whatever happens."""
    try:
        async with aclosing(answer.deltas()) as news:
            async for deltas in news:
                take(deltas)
    finally:
        await answer.aclose()
    return answer.ending


async def answer_of(
    request: Request, body: TurnFields, to_chat: Callable[[], ChatRequest]
) -> tuple[ChatRequest, int, Answer]:
    """Return the chat that a body stands for, its prompt's tokens, and the answer on its way.

    Raises ApiError, which may speak of the chat's fields.
    """
    server = server_of(request)
    strategy_for(server, body.model, body, None)  # what is wrong with the names comes first
    chat = to_chat()
    chosen = strategy_for(server, body.model, body, obstacle(chat))
    turn = await prepare(server, chat, chosen)
    n_prompt = len(turn.generation.prompt_ids)
    if chosen is not None:
        return chat, n_prompt, StrategyTurn(strategy_run(request, chat, turn, chosen))
    submitted = await submit(request, [turn.generation])
    return chat, n_prompt, ModelTurn(server, chat, turn, submitted)


def chat_request(body: TurnFields, values: Mapping[str, Any]) -> ChatRequest:
    """Return the chat that a body of another protocol stands for.

    The sampling fields of `body` count where `values` has none. Raises ApiError 400.
    """
    if (body.n or 1) > 1:
        raise invalid(f"n is {body.n} but this endpoint answers once; leave it out", param="n")
    names = TurnFields.model_fields.keys() - {"logit_bias", "stream", "stream_options"}
    given = {name: getattr(body, name) for name in names}
    merged = given | {name: value for name, value in values.items() if value is not None}
    try:
        chat = ChatRequest.model_validate(merged)
    except ValidationError as error:
        raise refusal(error) from None
    chat.logit_bias = body.logit_bias  # its keys are numbers by now
    return chat


class ModelTurn:
    """The model's own answer to a turn."""

    def __init__(self, server: Server, chat: ChatRequest, turn: Turn, submitted: Submitted) -> None:
        make_parser = turn.shape.parser
        self._parser: AnswerParser = make_parser() if make_parser else _plain()
        self._server = server
        self._chat = chat
        self._submitted = submitted
        self._output: RequestOutput | None = None
        self._reason = ""

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        async for pieces in self._submitted.only:
            deltas: list[Delta] = []
            for piece in pieces:
                check_piece(piece)
                deltas += self._parser.push(piece.text, len(piece.token_ids))
                if piece.finish_reason is not None:
                    rest, self._reason = self._parser.finish(piece.finish_reason)
                    deltas += rest
            self._output = pieces[-1].output
            if deltas:
                yield deltas

    @property
    def ending(self) -> Ending:
        output = finished(self._output)
        return Ending(
            self._reason,
            output.usage,
            self._parser.reasoning_tokens,
            output.token_ids,
            capacity_of(self._server, self._chat, [output]),
        )

    async def aclose(self) -> None:
        await self._submitted.aclose()


class StrategyTurn:
    """A strategy's answer to a turn: all of it in one piece."""

    def __init__(self, run: StrategyRun) -> None:
        self._run = run
        self._ending: Ending | None = None

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        got = await self._run.answer()
        self._ending = Ending(got.finish_reason, got.usage, 0, [], self._run.capacity(got))
        if got.text:
            yield [{"content": got.text}]

    @property
    def ending(self) -> Ending:
        assert self._ending is not None  # the deltas have been read
        return self._ending

    async def aclose(self) -> None:
        """Nothing runs outside `deltas`."""


def _plain() -> MessageParser:
    return MessageParser(Start.CONTENT, None)
