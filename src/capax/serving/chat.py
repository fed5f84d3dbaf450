"""`POST /v1/chat/completions`: the next message of a conversation.

`prepare` turns a body into a `Turn`, what the engine is asked for; other protocols
(`/v1/responses`, `/v1/messages`) translate their bodies and use it too. `shape.py` says how
tools, structured output and reasoning take part.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from capax.decoding.params import INT32_MAX, LIMITS, Limits
from capax.endpoints import Message
from capax.engine.llm import LLM
from capax.engine.outputs import RequestOutput, StreamPiece
from capax.errors import FileFormatError
from capax.files.chat_template import (
    Messages,
    encode_chat,
    is_trusted,
    render_chat,
    template_of,
)
from capax.methods import Chosen
from capax.serving.body import body_schema, read_body
from capax.serving.chunks import ChunkWriter, envelope
from capax.serving.conversation import MESSAGES
from capax.serving.errors import invalid
from capax.serving.fields import SamplingFields, number
from capax.serving.form import FormFields
from capax.serving.generation import (
    Chunks,
    Generation,
    Progress,
    Stopwatch,
    Submitted,
    cache_salt,
    capacity_of,
    check_piece,
    finished,
    sampling_params,
    submit,
    timings_of,
    tokens_wanted,
    usage_of,
)
from capax.serving.logprobs import chat_logprobs, prompt_logprobs
from capax.serving.prompts import (
    INLINE_CHARS,
    check_countable,
    check_fits,
    check_text_fits,
    off_loop,
)
from capax.serving.shape import PLAIN, AnswerParser, Delta, Shape
from capax.serving.shaping import shape_of
from capax.serving.sse import DONE, EventStream
from capax.serving.state import Server, server_of
from capax.serving.strategies import (
    Asked,
    StrategicAnswer,
    StrategyFields,
    StrategyRun,
    asks_nodes,
    named_strategy,
    strategy_for,
)

router = APIRouter()

T = TypeVar("T")

MAX_TOKENS = number("max_tokens", Limits(-1, INT32_MAX, is_integer=True))


class ConversationFields(SamplingFields):
    """What decides the prompt of a chat."""

    messages: Annotated[list[dict[str, Any]] | None, MESSAGES]
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: Any = None


class ChatRequest(ConversationFields, FormFields, StrategyFields):
    """The body of `/v1/chat/completions`."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None

    max_tokens: Annotated[int | None, MAX_TOKENS] = None
    max_completion_tokens: Annotated[int | None, MAX_TOKENS] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, number("top_logprobs", LIMITS["logprobs"])] = None
    return_progress: bool | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A chat request ready for the engine."""

    generation: Generation
    shape: Shape = PLAIN


@router.post("/chat/completions", openapi_extra=body_schema(ChatRequest))
@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    body = await read_body(request, ChatRequest)
    server = server_of(request)
    chosen = strategy_for(server, body.model, body, obstacle(body))
    _check(body)
    if chosen is not None:
        return await _by_strategy(request, server, body, chosen)
    answer = ChatAnswer(server, body, await prepare(server, body))
    submitted = await submit(request, [answer.turn.generation])
    if body.stream:
        return EventStream(Chunks(submitted, answer.chunks(submitted)))
    try:
        whole = await answer.whole(submitted)
    finally:
        await submitted.aclose()
    return Response(msgspec.json.encode(whole), media_type="application/json")


async def _by_strategy(
    request: Request, server: Server, body: ChatRequest, chosen: Chosen
) -> Response:
    run = strategy_run(request, body, await prepare(server, body, chosen), chosen)
    answer = StrategicAnswer(run, includes_usage=body.includes_usage)
    if body.stream:
        return EventStream(answer.chunks())
    whole = await answer.whole()
    return Response(msgspec.json.encode(whole), media_type="application/json")


def strategy_run(request: Request, body: ChatRequest, turn: Turn, chosen: Chosen) -> StrategyRun:
    """Return the run of a strategy that answers a prepared chat."""

    async def ids_of(messages: Sequence[Message]) -> list[int]:
        return await conversation_ids(
            server_of(request), body.model_copy(update={"messages": list(messages)}), turn.shape
        )

    asked = Asked(request, turn.generation, ids_of, turn.shape.parser)
    return StrategyRun(chosen, asked, body.messages or [], body.max_total_tokens)


@router.post("/v1/chat/completions/input_tokens", openapi_extra=body_schema(ChatRequest))
async def input_tokens(request: Request) -> Response:
    """Count the prompt tokens that a chat request would have."""
    body = await read_body(request, ChatRequest)
    server = server_of(request)
    named_strategy(server, body.model)
    shape = await shape_for(server, body)
    ids = await conversation_ids(server, body, shape, only_counts=True)
    counted = {"object": "chat.completion.input_tokens", "input_tokens": len(ids)}
    return Response(msgspec.json.encode(counted), media_type="application/json")


async def prepare(server: Server, body: ChatRequest, chosen: Chosen | None = None) -> Turn:
    """Return what a body asks of the engine. Raises 400 if it does not fit the context.

    `chosen`: the strategy that answers. Where nodes do, each reads the conversation in its own
    form, and the server's model need not have one for chats.
    """
    ids: list[int] = []
    if asks_nodes(chosen) and not _speaks(server.llm):
        shape = await shape_of(server, body, lambda has_tools: "")
    else:
        shape = await shape_for(server, body)
        ids = await conversation_ids(server, body, shape)
        if shape.begin is not None:
            shape = shape.begin(shape, ids)
    name, value = "max_completion_tokens", body.max_completion_tokens
    if value is None:
        name, value = "max_tokens", body.max_tokens
    max_tokens = tokens_wanted(name, value)
    check_fits(len(ids), max_tokens, server.llm.context_len, param="messages")
    params = sampling_params(
        server,
        body,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        stop=((body.stop or ()) + shape.stop) or None,
        skip_special_tokens=shape.skip_special_tokens,
    )
    generation = Generation(ids, params, cache_salt(body), body.priority or 0, shape.constraint)
    return Turn(generation, shape)


async def shape_for(server: Server, body: ChatRequest) -> Shape:
    """Return what the body demands of the answer. Raises ApiError 400."""
    return await shape_of(server, body, partial(_template, server.llm))


async def conversation_ids(
    server: Server, body: ConversationFields, shape: Shape = PLAIN, *, only_counts: bool = False
) -> list[int]:
    """Return the tokens of a conversation through the model's template.

    Raises 400 context_length_exceeded before it tokenises a text that cannot fit; with
    `only_counts` there may be more tokens than the context holds.
    """
    llm = server.llm
    check = check_countable if only_counts else check_text_fits

    def encode(messages: Messages, template: str, arguments: dict[str, Any]) -> list[int]:
        return encode_chat(
            llm.tokenizer,
            messages,
            template=template,
            check_text=lambda text: check(llm.tokenizer, text, llm.context_len, "messages"),
            **arguments,
        )

    return await _templated(llm, body, shape, encode)


async def conversation_text(server: Server, body: ConversationFields, shape: Shape = PLAIN) -> str:
    """Return the text of a conversation through the model's template. Raises ApiError 400."""
    tokenizer = server.llm.tokenizer

    def render(messages: Messages, template: str, arguments: dict[str, Any]) -> str:
        bos, eos = tokenizer.bos_id, tokenizer.eos_id
        return render_chat(
            template,
            messages,
            bos_token=None if bos is None else tokenizer.token_text(bos),
            eos_token=None if eos is None else tokenizer.token_text(eos),
            **arguments,
        )

    return await _templated(server.llm, body, shape, render)


async def _templated(
    llm: LLM,
    body: ConversationFields,
    shape: Shape,
    function: Callable[[Messages, str, dict[str, Any]], T],
) -> T:
    """Call function(messages, template, arguments of the template) where it may take its time.

    A template that is not one of ours renders in the helper process, a long conversation in
    another thread; neither holds up the event loop.
    """
    messages = body.messages
    if body.chat_template is not None:
        raise invalid(
            "chat_template is given but templates of requests are not rendered; leave it out",
            param="chat_template",
        )
    if messages is None:
        raise invalid("messages is null but at least one message is needed", param="messages")
    if shape.messages is not None:
        messages = shape.messages(messages)
    template = _template(llm, bool(shape.tools))
    arguments = {
        "add_generation_prompt": body.add_generation_prompt is not False,
        "tools": shape.tools,
        "documents": body.documents,
        "options": {**shape.template_options, **(body.chat_template_kwargs or {})},
    }
    n_chars = sum(len(message["content"]) for message in messages)
    is_plain = not (shape.tools or body.documents or any("tool_calls" in m for m in messages))
    is_long = n_chars + len(messages) > INLINE_CHARS or not is_plain
    try:
        return await off_loop(
            lambda: function(messages, template, arguments),
            is_long=is_long or not is_trusted(template),
        )
    except FileFormatError as error:
        # The template serves other conversations, so it is this one that it cannot show.
        raise invalid(str(error), param="messages") from None


def _speaks(llm: LLM) -> bool:
    """Say whether a model has a form for chats."""
    return bool(llm.file.chat_template or llm.tokenizer.chat_templates)


def _template(llm: LLM, has_tools: bool) -> str:
    for_tools = llm.tokenizer.chat_templates.get("tool_use") if has_tools else None
    return for_tools or llm.file.chat_template or template_of(llm.tokenizer)


def obstacle(body: ChatRequest) -> str | None:
    """Return the field of a request that an answer made out of several cannot have."""
    if body.n is not None and body.n > 1:
        return "n"
    for name in ("tools", "logprobs", "prompt_logprobs", "return_token_ids", "return_progress"):
        if getattr(body, name):
            return name
    return None


def _check(body: ChatRequest) -> None:
    """Refuse what cannot be answered."""
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream and body.prompt_logprobs is not None:
        raise invalid(
            "log-probabilities of the prompt cannot be streamed; leave out stream or "
            "prompt_logprobs",
            param="prompt_logprobs",
        )


class _Choice:
    """One choice as it grows. Without a parser all text is the message's content."""

    def __init__(self, parser: AnswerParser | None) -> None:
        self._parser = parser
        self._text: list[str] = []
        self.finish_reason: str | None = None

    def push(self, piece: StreamPiece) -> list[Delta]:
        """Take a piece; return what it adds to the message."""
        deltas: list[Delta] = []
        if self._parser is not None:
            deltas = self._parser.push(piece.text, len(piece.token_ids))
        elif piece.text:
            self._text.append(piece.text)
            deltas = [{"content": piece.text}]
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
            if self._parser is not None:
                rest, self.finish_reason = self._parser.finish(piece.finish_reason)
                deltas += rest
        return deltas

    def message(self) -> dict[str, Any]:
        """Return the whole message."""
        fields: dict[str, Any] = {"content": "".join(self._text)}
        if self._parser is not None:
            fields = self._parser.message()
        return {"role": "assistant", **fields, "refusal": None}

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self._parser is None else self._parser.reasoning_tokens


class ChatAnswer:
    """The answer to one chat request, whole or in chunks."""

    def __init__(self, server: Server, body: ChatRequest, turn: Turn) -> None:
        self.turn = turn
        self._server = server
        self._body = body
        self._tokenizer = server.llm.tokenizer
        self._n = turn.generation.params.n
        make_parser = turn.shape.parser
        self._choices = [_Choice(make_parser() if make_parser else None) for _ in range(self._n)]
        self._output: RequestOutput | None = None

    # --- whole ----------------------------------------------------------------------------

    async def whole(self, submitted: Submitted) -> dict[str, Any]:
        """Wait for all choices and return the response's JSON."""
        async for pieces in submitted.only:
            for piece in pieces:
                check_piece(piece)
                self._choices[piece.index].push(piece)
            self._output = pieces[-1].output
        output = finished(self._output)
        body = self._body
        more: dict[str, Any] = {}
        if body.prompt_logprobs is not None and output.prompt_logprobs is not None:
            more["prompt_logprobs"] = prompt_logprobs(self._tokenizer, output.prompt_logprobs)
        if body.return_token_ids:
            more["prompt_token_ids"] = output.prompt_token_ids
        return envelope(self._server, "chat.completion", is_stream=False) | {
            "choices": [self._choice(i, output) for i in range(self._n)],
            **more,
            **self._figures(),
        }

    def _choice(self, index: int, output: RequestOutput) -> dict[str, Any]:
        choice, made = self._choices[index], output.outputs[index]
        fields: dict[str, Any] = {
            "index": index,
            "message": choice.message(),
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        if made.logprobs is not None:
            fields["logprobs"] = chat_logprobs(self._tokenizer, made.logprobs)
        if self._body.return_token_ids:
            fields["token_ids"] = made.token_ids
        return fields

    def _figures(self) -> dict[str, Any]:
        outputs = [finished(self._output)]
        reasoning = sum(choice.reasoning_tokens for choice in self._choices)
        return {
            "usage": usage_of(outputs, reasoning),
            "timings": timings_of(outputs),
            "capax": capacity_of(self._server, self._body, outputs),
        }

    # --- in chunks ------------------------------------------------------------------------

    async def chunks(self, submitted: Submitted) -> AsyncGenerator[bytes, None]:
        """Yield the stream's bytes, everything that is ready together at once."""
        body = self._body
        writer = ChunkWriter(
            self._server, "chat.completion", self._n, with_usage=body.includes_usage
        )
        write = partial(self._chunk, writer, self._stopwatch())
        is_plain = self._is_plain
        yield self._first_chunks(writer)
        text = writer.text
        news = submitted.only
        if body.return_progress:
            progress = Progress(news, len(self.turn.generation.prompt_ids))
            async with aclosing(progress.news()) as reported:
                async for pieces in reported:
                    if pieces:
                        yield b"".join(map(write, pieces))
                    else:
                        yield writer.without_choice({"prompt_progress": progress.shown()})
        async for pieces in news:
            if is_plain:
                yield b"".join(
                    [
                        text(p.index, p.text) if p.finish_reason is None else write(p)
                        for p in pieces
                        if p.text or p.finish_reason is not None
                    ]
                )
            else:
                yield b"".join(map(write, pieces))
        if body.includes_usage:
            yield writer.without_choice(self._figures()) + DONE
        else:
            yield DONE

    @property
    def _is_plain(self) -> bool:
        """Whether a chunk is its text and nothing else."""
        body = self._body
        return self.turn.shape.parser is None and not (
            body.logprobs or body.return_token_ids or body.timings_per_token
        )

    def _stopwatch(self) -> Stopwatch | None:
        if not self._body.timings_per_token:
            return None
        return Stopwatch(len(self.turn.generation.prompt_ids))

    def _first_chunks(self, writer: ChunkWriter) -> bytes:
        extra: dict[str, Any] = {}
        if self._body.return_token_ids:
            extra["prompt_token_ids"] = self.turn.generation.prompt_ids
        role = {"role": "assistant", "content": ""}
        return b"".join(
            writer.choice(
                {"index": i, "delta": role, "logprobs": None, "finish_reason": None}, extra
            )
            for i in range(self._n)
        )

    def _chunk(self, writer: ChunkWriter, stopwatch: Stopwatch | None, piece: StreamPiece) -> bytes:
        """Return the chunks of a piece: of what it adds, then of the end if it is one.

        The log-probabilities and ids of its tokens go with the first.
        """
        check_piece(piece)
        choice = self._choices[piece.index]
        deltas = choice.push(piece)
        beside = self._beside(piece)
        extra = {} if stopwatch is None else {"timings": stopwatch.add(len(piece.token_ids))}
        if not deltas and beside:
            deltas = [{"content": ""}]
        parts = []
        for delta in deltas:
            fields = {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None}
            parts.append(writer.choice(fields | beside, extra))
            beside = {}
        if choice.finish_reason is not None:
            parts.append(self._last_chunk(writer, piece))
        return b"".join(parts)

    def _beside(self, piece: StreamPiece) -> dict[str, Any]:
        beside: dict[str, Any] = {}
        if piece.logprobs is not None and self._body.logprobs:
            beside["logprobs"] = chat_logprobs(self._tokenizer, piece.logprobs)
        if self._body.return_token_ids:
            beside["token_ids"] = piece.token_ids
        return beside

    def _last_chunk(self, writer: ChunkWriter, piece: StreamPiece) -> bytes:
        fields = {
            "index": piece.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": self._choices[piece.index].finish_reason,
        }
        extra: dict[str, Any] = {}
        if piece.output is not None:
            self._output = piece.output
            if not self._body.includes_usage:
                figures = self._figures()
                extra = {"timings": figures["timings"], "capax": figures["capax"]}
        return writer.choice(fields, extra)
