"""`POST /v1/embeddings`: texts become vectors, by the embedding model or the one that writes.

A text is a string or token ids, special tokens included. One that is too long is refused with
both counts; `truncate_prompt_tokens` asks for it to be cut, and what was cut is named in the
answer. Texts are embedded for one request at a time, some at once, between which a request
that nobody waits for any more ends.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response

from capax.decoding.params import INT32_MAX, TOKEN_LIMITS, Limits, check_number, show
from capax.errors import ConfigError, ContextLengthError
from capax.serving.body import RequestModel, body_schema, read_body
from capax.serving.errors import check_model, invalid
from capax.serving.fields import Checked, number
from capax.serving.prompts import off_loop
from capax.serving.state import Server, server_of

if TYPE_CHECKING:
    from capax import LLM, Embedder

router = APIRouter(tags=["embeddings"])

MAX_TEXTS = 2048
MAX_TOKENS = 300_000  # of all texts of a request, as the hosted API has it
MAX_NUMBERS = 1 << 22  # in an answer
BATCH_TOKENS = 1024
INLINE_CHARS = 10_000  # shorter texts are tokenised on the event loop

Floats = npt.NDArray[np.float32]
Text: TypeAlias = str | list[int]


def texts_of(value: Any) -> list[Text]:
    """Return the texts as a list; one may stand by itself."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if not isinstance(value[0], str | list):
            value = [value]
        if len(value) > MAX_TEXTS:
            raise ConfigError(
                f"input has {len(value)} texts but a request may have {MAX_TEXTS}; send them in "
                "several requests"
            )
        return [item if isinstance(item, str) else _token_ids(item) for item in value]
    raise ConfigError(
        f"input is {show(value)} but must be a string, a list of strings, a list of token ids, or "
        "a list of lists of token ids"
    )


def _token_ids(value: Any) -> list[int]:
    if not isinstance(value, list):
        raise ConfigError(f"input contains {show(value)} but each text is a string or token ids")
    for token in value:
        check_number("a token of the input", token, TOKEN_LIMITS)
    return value


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
INPUT = Checked(
    texts_of,
    {
        "anyOf": [
            {"type": "string"},
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_TEXTS,
                "items": {"anyOf": [{"type": "string"}, _IDS]},
            },
            _IDS | {"minItems": 1},
        ]
    },
)
TRUNCATE = number("truncate_prompt_tokens", Limits(-1, INT32_MAX, is_integer=True))


class EmbeddingRequest(RequestModel):
    """The body of `/v1/embeddings`."""

    input: Annotated[list[Text] | None, INPUT]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[
        int | None, number("dimensions", Limits(1, INT32_MAX, is_integer=True))
    ] = None
    truncate_prompt_tokens: Annotated[int | None, TRUNCATE] = None
    user: str | None = None


@router.post("/embeddings", openapi_extra=body_schema(EmbeddingRequest))
@router.post("/v1/embeddings", openapi_extra=body_schema(EmbeddingRequest))
async def embeddings(request: Request) -> Response:
    """Return one vector for each text."""
    body = await read_body(request, EmbeddingRequest)
    server = server_of(request)
    if body.input is None:
        raise invalid("input is null but a text is needed", param="input")
    model, name = embedding_model(server, body.model)
    n_dimensions = body.dimensions or model.n_dimensions
    if n_dimensions > model.n_dimensions:
        raise invalid(
            f"dimensions is {n_dimensions} but {name} has {model.n_dimensions}", param="dimensions"
        )
    if len(body.input) * n_dimensions > MAX_NUMBERS:
        raise invalid(
            f"{len(body.input)} embeddings of {n_dimensions} numbers are more than the "
            f"{MAX_NUMBERS} an answer may have; send the texts in several requests",
            param="input",
        )
    embedding = Embedding(server, model)
    vectors = await embedding.of(body.input, body.truncate_prompt_tokens, param="input")
    answer = {
        "object": "list",
        "data": data_of(shortened(vectors, n_dimensions), body.encoding_format or "float"),
        "model": name,
        "usage": embedding.usage(),
    }
    if embedding.truncated:
        answer["capax"] = {"truncated": embedding.truncated}
    content = await off_loop(lambda: msgspec.json.encode(answer), is_long=len(vectors) > 64)
    return Response(content, media_type="application/json")


def embedding_model(server: Server, name: str | None) -> tuple[LLM | Embedder, str]:
    """Return the model that embeds for `name`, and what it is called. 404 for other names."""
    beside = server.config.embedding_model_name
    if server.has_llm and server.embedder is not None and name in (None, beside):
        return server.embedder, beside
    check_model(server, name)
    return server.primary, server.model_name


class Embedding:
    """The texts of one request on their way to vectors; counts what they were."""

    def __init__(self, server: Server, model: LLM | Embedder) -> None:
        self._server = server
        self._model = model
        self.n_tokens = 0
        self.truncated: list[int] = []  # indices of the texts that were cut

    async def of(self, texts: Sequence[Text], truncate: int | None, *, param: str) -> Floats:
        """Return the texts' embeddings, [n, n_dimensions]. Raises ApiError 400 for bad ones."""
        n_chars = sum(len(text) for text in texts)
        try:
            ids = await off_loop(lambda: self._ids(texts, truncate), is_long=n_chars > INLINE_CHARS)
        except ContextLengthError as error:
            raise invalid(
                f"{error} with truncate_prompt_tokens", param=param, code="context_length_exceeded"
            ) from None
        except ConfigError as error:
            raise invalid(str(error), param=param) from None
        self.n_tokens += sum(map(len, ids))
        if self.n_tokens > MAX_TOKENS:
            raise invalid(
                f"the texts have {self.n_tokens} tokens but a request may have {MAX_TOKENS}; "
                "send them in several requests",
                param=param,
            )
        parts = []
        for batch in _batches(ids):
            async with self._server.embedding_turn:
                parts.append(await asyncio.to_thread(self._model.embed_ids, batch))
        metrics = self._server.metrics
        metrics.embedding_texts += len(ids)
        metrics.embedding_tokens += sum(map(len, ids))
        return np.concatenate(parts)

    def usage(self) -> dict[str, int]:
        """Return the tokens of all texts, special ones included."""
        return {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}

    def _ids(self, texts: Sequence[Text], truncate: int | None) -> list[list[int]]:
        """Tokenise, cut and check everything before the first text is embedded."""
        tokens = self._model.text_tokens
        whole = tokens.ids_of(texts)
        if truncate is None or truncate == 0:
            ids = whole
        else:
            longest = self._model.context_len if truncate == -1 else truncate
            ids = [tokens.cut(text, longest) for text in whole]
            self.truncated = [i for i, text in enumerate(ids) if len(text) < len(whole[i])]
        for i, text in enumerate(ids):
            tokens.checked(i, text)
        return ids


def _batches(ids: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    n_tokens = 0
    for text in ids:
        if batch and n_tokens + len(text) > BATCH_TOKENS:
            yield batch
            batch, n_tokens = [], 0
        batch.append(text)
        n_tokens += len(text)
    yield batch


def shortened(vectors: Floats, n_dimensions: int) -> Floats:
    """Return the first numbers of each vector, brought to length 1; all of them as they are."""
    if n_dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :n_dimensions].astype(np.float64)
    length = np.sqrt((cut**2).sum(axis=1, keepdims=True))
    return (cut / np.where(length > 0, length, 1.0)).astype(np.float32)


def data_of(vectors: Floats, encoding_format: str) -> list[dict[str, Any]]:
    """Return the vectors as lists of numbers, or as base64 of little-endian float32."""
    data: list[dict[str, Any]] = []
    for index, vector in enumerate(vectors):
        shown: Any = vector.tolist()
        if encoding_format == "base64":
            shown = base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return data
