"""Text to tokens and back over HTTP, in vLLM's shapes.

`/tokenize` also takes llama-server's `content`, `/apply-template` answers as llama-server does,
and `/tokenizer_info` has what lm-evaluation-harness asks for. Nothing here generates, so control
tokens spelled in a text are recognised unless `parse_special` is false.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response

from capax.decoding.params import INT32_MAX, show
from capax.errors import ConfigError
from capax.files.tokenizer import Tokenizer
from capax.serving.body import RequestModel, body_schema, read_body
from capax.serving.chat import (
    ConversationFields,
    conversation_ids,
    conversation_text,
)
from capax.serving.conversation import MESSAGES
from capax.serving.errors import check_model, invalid
from capax.serving.fields import Checked
from capax.serving.prompts import INLINE_CHARS, check_countable, off_loop
from capax.serving.state import Server, server_of

router = APIRouter()

INLINE_TOKENS = 2_000  # more are turned into text in another thread


def _tokens(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ConfigError(f"tokens is {show(value)} but must be a list of token ids")
    for token in value:
        if type(token) is not int or not 0 <= token <= INT32_MAX:
            raise ConfigError(f"tokens contains {show(token)} but must hold token ids")
    return value


class TokenizeRequest(ConversationFields):
    """The body of `/tokenize`: `prompt`, or llama-server's `content`, or `messages`."""

    messages: Annotated[list[dict[str, Any]] | None, MESSAGES] = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestModel):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: Annotated[
        list[int] | None, Checked(_tokens, {"type": "array", "items": {"type": "integer"}})
    ]


@router.post("/tokenize", openapi_extra=body_schema(TokenizeRequest))
async def tokenize(request: Request) -> Response:
    """Return the tokens of a text or a conversation, and how many there are."""
    body = await read_body(request, TokenizeRequest)
    server = server_of(request)
    check_model(server, body.model)
    if (body.prompt, body.content, body.messages).count(None) != 2:
        raise invalid("one of prompt, content and messages is needed, and only one")
    if body.messages is not None:
        ids = await conversation_ids(server, body, only_counts=True)
    else:
        ids = await _text_ids(server, body)
    texts = None
    if body.return_token_strs:
        texts = [server.llm.tokenizer.token_text(token) for token in ids]
    return _json(
        {
            "count": len(ids),
            "max_model_len": server.llm.context_len,
            "tokens": ids,
            "token_strs": texts,
        }
    )


@router.post("/detokenize", openapi_extra=body_schema(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """Return the text of tokens; also under llama-server's name, `content`."""
    body = await read_body(request, DetokenizeRequest)
    server = server_of(request)
    check_model(server, body.model)
    ids, tokenizer = body.tokens, server.llm.tokenizer
    if ids is None:
        raise invalid("tokens is null but must be a list of token ids", param="tokens")
    is_long = len(ids) > INLINE_TOKENS
    text = await off_loop(lambda: tokenizer.decode(ids), is_long=is_long)
    return _json({"prompt": text, "content": text})


@router.post("/apply-template", openapi_extra=body_schema(ConversationFields))
async def apply_template(request: Request) -> Response:
    """Return the prompt that a conversation becomes, without generating."""
    body = await read_body(request, ConversationFields)
    server = server_of(request)
    check_model(server, body.model)
    return _json({"prompt": await conversation_text(server, body)})


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """Say what the tokenizer adds, and the chat template."""
    llm = server_of(request).llm
    tokenizer = llm.tokenizer
    return _json(
        {
            "tokenizer_class": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": llm.context_len,
            "bos_token": _text_of(tokenizer, tokenizer.bos_id),
            "eos_token": _text_of(tokenizer, tokenizer.eos_id),
            "pad_token": _text_of(tokenizer, tokenizer.pad_id),
            "unk_token": _text_of(tokenizer, tokenizer.unk_id),
            "add_bos_token": tokenizer.add_bos,
            "add_eos_token": tokenizer.add_eos,
            "chat_template": llm.file.chat_template or tokenizer.chat_template,
        }
    )


async def _text_ids(server: Server, body: TokenizeRequest) -> list[int]:
    """Tokenise without regard to the context: this is how people learn what does not fit."""
    text = body.prompt if body.prompt is not None else body.content or ""
    # vLLM adds BOS unless told otherwise, llama-server only when told.
    adds = body.add_special_tokens if body.add_special_tokens is not None else body.add_special
    if adds is None:
        adds = body.content is None
    parses, tokenizer = body.parse_special is not False, server.llm.tokenizer
    param = "prompt" if body.prompt is not None else "content"

    def encode() -> list[int]:
        check_countable(tokenizer, text, server.llm.context_len, param)
        return tokenizer.encode(text, adds, parses)

    return await off_loop(encode, is_long=len(text) > INLINE_CHARS)


def _text_of(tokenizer: Tokenizer, token: int | None) -> str | None:
    return None if token is None else tokenizer.token_text(token)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
