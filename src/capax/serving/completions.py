"""`POST /v1/completions`: text goes on where the prompt ends.

A prompt is text or token ids, or a list of either; the choices of prompt i have the indices
i * n to i * n + n - 1. Text is data: the spelling of a control token in it stays text unless
`parse_special` says otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from capax.decoding.constraint import ConstraintFactory
from capax.decoding.params import INT32_MAX, LIMITS, TOKEN_LIMITS, Limits, check_number, show
from capax.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
from capax.errors import ConfigError
from capax.serving.body import body_schema, read_body
from capax.serving.chunks import ChunkWriter, envelope
from capax.serving.errors import check_model, invalid
from capax.serving.fields import Checked, number
from capax.serving.form import GeneratingFields, compiled, form_of
from capax.serving.generation import (
    Chunks,
    Generation,
    Stopwatch,
    Submitted,
    cache_salt,
    capacity_of,
    check_piece,
    sampling_params,
    submit,
    timings_of,
    usage_of,
)
from capax.serving.logprobs import LegacyLogprobs, prompt_logprobs
from capax.serving.prompts import check_fits, encode_text
from capax.serving.sse import DONE, EventStream
from capax.serving.state import Server, server_of

router = APIRouter()

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint alone
Prompt = str | list[int]


def _prompts(value: Any) -> list[Prompt]:
    """Return the prompts as a list; one prompt may stand by itself."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return list(value)
        if not isinstance(value[0], list):
            return [_token_ids(value)]
        return [_token_ids(item) for item in value]
    raise ConfigError(
        f"prompt is {show(value)} but must be a string, a list of strings, a list of token ids, or "
        "a list of lists of token ids"
    )


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ConfigError(
            f"prompt contains {show(value)} but each prompt must be text or token ids"
        )
    if not all(type(token) is int and 0 <= token <= INT32_MAX for token in value):
        for token in value:
            check_number("a token of the prompt", token, TOKEN_LIMITS)
    return value


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
PROMPT = Checked(
    _prompts,
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "minItems": 1, "items": {"type": "string"}},
            _IDS,
            {"type": "array", "minItems": 1, "items": _IDS},
        ]
    },
)


class CompletionRequest(GeneratingFields):
    """The body of `/v1/completions`."""

    prompt: Annotated[list[Prompt] | None, PROMPT]
    max_tokens: Annotated[
        int | None, number("max_tokens", Limits(-1, INT32_MAX, is_integer=True))
    ] = None
    logprobs: Annotated[int | None, number("logprobs")] = None
    echo: bool | None = None
    best_of: Annotated[int | None, number("best_of", LIMITS["n"])] = None
    suffix: str | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None


@router.post("/completions", openapi_extra=body_schema(CompletionRequest))
@router.post("/v1/completions", openapi_extra=body_schema(CompletionRequest))
async def completions(request: Request) -> Response:
    """Complete one prompt or several."""
    body = await read_body(request, CompletionRequest)
    server = server_of(request)
    check_model(server, body.model)
    _check(server, body)
    ids = [await _ids(server, body, prompt) for prompt in body.prompt or []]
    form = form_of(body)
    constraint = None if form is None else await compiled(server, *form)
    answer = Answer(server, body, ids, constraint)
    submitted = await submit(request, answer.generations())
    if body.stream:
        return EventStream(Chunks(submitted, answer.chunks(submitted)))
    try:
        outputs = await submitted.outputs()
    finally:
        await submitted.aclose()
    return Response(msgspec.json.encode(answer.whole(outputs)), media_type="application/json")


def _check(server: Server, body: CompletionRequest) -> None:
    """Refuse what cannot be, or is not, answered."""
    prompts = body.prompt
    if prompts is None:
        raise invalid("prompt is null but text or token ids are needed", param="prompt")
    if len(prompts) > server.config.max_prompts:
        raise invalid(
            f"{len(prompts)} prompts are given but a request may have "
            f"{server.config.max_prompts}; send them in several requests",
            param="prompt",
        )
    if body.suffix:
        raise invalid(
            "suffix is given but text cannot be inserted before one here; leave it out and end "
            "the prompt where the text shall go on",
            param="suffix",
        )
    if body.max_tokens == 0 and not body.echo:
        raise invalid("max_tokens is 0, which needs echo: true; raise it", param="max_tokens")
    n = body.n or 1
    if body.best_of is not None and body.best_of < n:
        raise invalid(
            f"best_of is {body.best_of} but n is {n}; best_of must be at least n", param="best_of"
        )
    if not body.stream:
        return
    if body.best_of is not None and body.best_of > n:
        raise invalid(
            f"best_of {body.best_of} cannot be streamed: which {n} are best is known at the end; "
            "leave out stream or best_of",
            param="best_of",
        )
    if body.prompt_logprobs is not None or (body.echo and body.logprobs is not None):
        raise invalid(
            "log-probabilities of the prompt cannot be streamed; leave out stream, or echo and "
            "prompt_logprobs",
            param="stream",
        )


async def _ids(server: Server, body: CompletionRequest, prompt: Prompt) -> list[int]:
    """Return the tokens of a prompt. Raises 400 if they, or the answer, do not fit."""
    if isinstance(prompt, str):
        ids = await encode_text(
            server,
            prompt,
            add_special=body.add_special_tokens is not False,
            parse_special=body.parse_special is True,
            param="prompt",
        )
        if not ids:
            raise invalid("the prompt is empty; at least one token is needed", param="prompt")
    else:
        ids = prompt
        vocab_size = server.llm.config.vocab_size
        if max(ids) >= vocab_size:
            raise invalid(
                f"the prompt has token {max(ids)} but the vocabulary has {vocab_size} tokens, 0 to "
                f"{vocab_size - 1}",
                param="prompt",
            )
    check_fits(len(ids), _max_tokens(body), server.llm.context_len, param="prompt")
    return ids


def _max_tokens(body: CompletionRequest) -> int | None:
    if body.max_tokens is None:
        return DEFAULT_MAX_TOKENS
    # With 0 one token is computed and not shown: the engine scores a prompt on its way to one.
    return None if body.max_tokens == -1 else max(body.max_tokens, 1)


class Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(
        self,
        server: Server,
        body: CompletionRequest,
        prompt_ids: list[list[int]],
        constraint: ConstraintFactory | None = None,
    ) -> None:
        self._server = server
        self._body = body
        self._prompts = body.prompt or []
        self._prompt_ids = prompt_ids
        self._constraint = constraint
        self._n = body.n or 1
        self._tokenizer = server.llm.tokenizer
        self._shows_new = body.max_tokens != 0
        self._skip_special = body.skip_special_tokens is not False

    def generations(self) -> list[Generation]:
        """Return what the engine is asked for."""
        body = self._body
        scored = body.prompt_logprobs
        if body.echo and body.logprobs is not None:
            scored = max(scored or 0, body.logprobs)
        params = sampling_params(
            self._server,
            body,
            max_tokens=_max_tokens(body),
            n=body.best_of,
            logprobs=body.logprobs,
            prompt_logprobs=scored,
        )
        salt, priority = cache_salt(body), body.priority or 0
        return [
            Generation(ids, params, salt, priority, self._constraint) for ids in self._prompt_ids
        ]

    # --- whole ----------------------------------------------------------------------------

    def whole(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        """Return the response's JSON."""
        choices = []
        for i, output in enumerate(outputs):
            for k, choice in enumerate(self._best(output.outputs)):
                choices.append(self._choice(i, i * self._n + k, output, choice))
        return envelope(self._server, "text_completion", is_stream=False) | {
            "choices": choices,
            **self._figures(outputs),
        }

    def _best(self, choices: list[CompletionOutput]) -> list[CompletionOutput]:
        """Return the n choices of the highest log-probability per token, or all n as they are."""
        if len(choices) <= self._n:
            return choices
        return sorted(
            choices, key=lambda c: c.cumulative_logprob / max(len(c.token_ids), 1), reverse=True
        )[: self._n]

    def _choice(
        self, prompt: int, index: int, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        body = self._body
        text = (self._echo_text(prompt) if body.echo else "") + (
            choice.text if self._shows_new else ""
        )
        made: dict[str, Any] = {"index": index, "text": text, "logprobs": None}
        if body.logprobs is not None:
            made["logprobs"] = self._logprobs(prompt, output, choice)
        made["finish_reason"] = choice.finish_reason if self._shows_new else "length"
        if body.prompt_logprobs is not None and output.prompt_logprobs is not None:
            made["prompt_logprobs"] = prompt_logprobs(self._tokenizer, output.prompt_logprobs)
        if body.return_token_ids:
            made["token_ids"] = choice.token_ids if self._shows_new else []
            made["prompt_token_ids"] = output.prompt_token_ids
        return made

    def _echo_text(self, prompt: int) -> str:
        given = self._prompts[prompt]
        return given if isinstance(given, str) else self._tokenizer.decode(given)

    def _logprobs(
        self, prompt: int, output: RequestOutput, choice: CompletionOutput
    ) -> dict[str, Any]:
        """Return the logprobs of a choice, after those of its prompt if that is echoed."""
        parts: list[dict[str, Any]] = []
        n_chars = 0
        if self._body.echo and output.prompt_logprobs is not None:
            # The tokens added around a text have no characters in it.
            hides_special = isinstance(self._prompts[prompt], str)
            writer = LegacyLogprobs(self._tokenizer, skip_special=hides_special)
            parts.append(writer.encode(output.prompt_token_ids, output.prompt_logprobs))
            n_chars = len(self._echo_text(prompt))
        if self._shows_new:
            writer = LegacyLogprobs(self._tokenizer, skip_special=self._skip_special)
            writer.skip(n_chars)
            parts.append(writer.encode(choice.token_ids, choice.logprobs or []))
        return {key: [x for part in parts for x in part[key]] for key in parts[0]}

    def _figures(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        usage = usage_of(outputs)
        if not self._shows_new:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return {
            "usage": usage,
            "timings": timings_of(outputs),
            "capax": capacity_of(self._server, self._body, outputs),
        }

    # --- in chunks ------------------------------------------------------------------------

    async def chunks(self, submitted: Submitted) -> AsyncGenerator[bytes, None]:
        """Yield the stream's bytes, everything that is ready together at once."""
        body, n_choices = self._body, len(self._prompts) * self._n
        writer = ChunkWriter(
            self._server, "text_completion", n_choices, with_usage=body.includes_usage
        )
        stream = _Stream(self, writer, n_choices)
        if body.echo:
            yield stream.echo()
        if len(self._prompts) == 1:
            async for pieces in submitted.only:
                yield stream.write(0, pieces)
        else:
            async with aclosing(submitted.news()) as news:
                async for batch in news:
                    yield b"".join([stream.write(prompt, pieces) for prompt, pieces in batch])
        yield stream.end()


class _Stream:
    """What a stream remembers from chunk to chunk."""

    def __init__(self, answer: Answer, writer: ChunkWriter, n_choices: int) -> None:
        body = answer._body
        self._answer = answer
        self._writer = writer
        self._n = answer._n
        self._outputs: dict[int, RequestOutput] = {}
        self._logprobs: list[LegacyLogprobs] | None = None
        if body.logprobs is not None:
            self._logprobs = [
                LegacyLogprobs(answer._tokenizer, skip_special=answer._skip_special)
                for _ in range(n_choices)
            ]
        self._stopwatch = None
        if body.timings_per_token:
            self._stopwatch = Stopwatch(sum(map(len, answer._prompt_ids)))
        self._shows_ids = bool(body.return_token_ids)
        self._includes_usage = body.includes_usage
        self._is_plain = answer._shows_new and not (
            self._logprobs or self._stopwatch or self._shows_ids
        )
        self._has_begun = [False] * n_choices

    def echo(self) -> bytes:
        """Return the chunks of the prompts."""
        parts = []
        for index in range(len(self._has_begun)):
            text = self._answer._echo_text(index // self._n)
            if self._logprobs is not None:
                self._logprobs[index].skip(len(text))
            parts.append(self._writer.text(index, text))
        return b"".join(parts)

    def write(self, prompt: int, pieces: list[StreamPiece]) -> bytes:
        """Return the chunks of some pieces of the answer to a prompt."""
        parts = []
        for piece in pieces:
            index = prompt * self._n + piece.index
            if piece.finish_reason is None and self._is_plain:
                if piece.text:
                    parts.append(self._writer.text(index, piece.text))
                continue
            check_piece(piece)
            parts.append(self._full(prompt, index, piece))
        return b"".join(parts)

    def _full(self, prompt: int, index: int, piece: StreamPiece) -> bytes:
        """Return a chunk with all that was asked for, or that ends a choice."""
        shows_new = self._answer._shows_new
        choice: dict[str, Any] = {
            "index": index,
            "text": piece.text if shows_new else "",
            "logprobs": None,
            "finish_reason": piece.finish_reason if shows_new else piece.finish_reason and "length",
        }
        if self._logprobs is not None and piece.logprobs is not None and shows_new:
            choice["logprobs"] = self._logprobs[index].encode(piece.token_ids, piece.logprobs)
        if self._shows_ids:
            choice["token_ids"] = piece.token_ids if shows_new else []
            if not self._has_begun[index]:
                choice["prompt_token_ids"] = self._answer._prompt_ids[prompt]
        self._has_begun[index] = True
        extra: dict[str, Any] = {}
        if self._stopwatch is not None:
            extra["timings"] = self._stopwatch.add(len(piece.token_ids))
        if piece.output is not None:
            self._outputs[prompt] = piece.output
            if not self._includes_usage and self._is_complete:
                figures = self._figures()
                extra |= {"timings": figures["timings"], "capax": figures["capax"]}
        return self._writer.choice(choice, extra)

    @property
    def _is_complete(self) -> bool:
        return len(self._outputs) == len(self._answer._prompt_ids)

    def _figures(self) -> dict[str, Any]:
        ordered = [self._outputs[i] for i in sorted(self._outputs)]
        return self._answer._figures(ordered)

    def end(self) -> bytes:
        """Return the last bytes."""
        usage = self._writer.without_choice(self._figures()) if self._includes_usage else b""
        return usage + DONE
