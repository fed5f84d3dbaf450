"""One answer of one choice, for the protocols that speak of messages in other words than chats.

`/v1/responses` and `/v1/messages` translate their bodies to a `ChatRequest`, which `chat.prepare`
turns into what the engine is asked for; what comes back are the deltas of a chat.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from capax.engine.outputs import RequestOutput
from capax.serving.body import refusal
from capax.serving.chat import ChatRequest, Turn
from capax.serving.errors import invalid
from capax.serving.fields import SamplingFields
from capax.serving.generation import Submitted, check_piece, finished
from capax.serving.reasoning import Start
from capax.serving.shape import AnswerParser, Delta
from capax.serving.shaping import MessageParser


def chat_request(body: SamplingFields, values: Mapping[str, Any]) -> ChatRequest:
    """Return the chat that a body of another protocol stands for.

    The sampling fields of `body` count where `values` has none. Raises ApiError 400.
    """
    if (body.n or 1) > 1:
        raise invalid(f"n is {body.n} but this endpoint answers once; leave it out", param="n")
    names = SamplingFields.model_fields.keys() - {"logit_bias", "stream", "stream_options"}
    given = {name: getattr(body, name) for name in names}
    merged = given | {name: value for name, value in values.items() if value is not None}
    try:
        chat = ChatRequest.model_validate(merged)
    except ValidationError as error:
        raise refusal(error) from None
    chat.logit_bias = body.logit_bias  # its keys are numbers by now
    return chat


class TurnAnswer:
    """The answer to a turn of one choice: deltas while it comes, then its outcome."""

    def __init__(self, turn: Turn) -> None:
        make_parser = turn.shape.parser
        self._parser: AnswerParser = make_parser() if make_parser else _plain()
        self._output: RequestOutput | None = None
        self.reason = ""  # 'stop', 'length' or 'tool_calls' at the end

    async def deltas(self, submitted: Submitted) -> AsyncGenerator[list[Delta], None]:
        """Yield what the answer gains, everything that is ready together in one list."""
        async for pieces in submitted.only:
            deltas: list[Delta] = []
            for piece in pieces:
                check_piece(piece)
                deltas += self._parser.push(piece.text, len(piece.token_ids))
                if piece.finish_reason is not None:
                    rest, self.reason = self._parser.finish(piece.finish_reason)
                    deltas += rest
            self._output = pieces[-1].output
            if deltas:
                yield deltas

    async def read(self, submitted: Submitted, take: Callable[[list[Delta]], object]) -> None:
        """Hand every delta to `take`, and end the request, whatever happens."""
        try:
            async with aclosing(self.deltas(submitted)) as news:
                async for deltas in news:
                    take(deltas)
        finally:
            await submitted.aclose()

    @property
    def output(self) -> RequestOutput:
        """What the engine made, after the end."""
        return finished(self._output)

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens


def _plain() -> MessageParser:
    return MessageParser(Start.CONTENT, None)
