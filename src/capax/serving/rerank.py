"""`POST /v1/rerank`: which documents a query is nearest to, by the cosine of their embeddings.

The embedding model looks at query and documents apart; a cross-encoder, which reads both
together, would rank better and is not run here.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request

from capax.decoding.params import INT32_MAX, Limits, show
from capax.errors import ConfigError
from capax.serving.body import RequestModel, body_schema, read_body
from capax.serving.embeddings import MAX_TEXTS, TRUNCATE, Embedding, embedding_model
from capax.serving.errors import invalid
from capax.serving.fields import Checked, number
from capax.serving.state import server_of

router = APIRouter(tags=["embeddings"])


def _documents(value: Any) -> list[str]:
    if not isinstance(value, list) or not 1 <= len(value) < MAX_TEXTS:
        raise ConfigError(
            f"documents is {show(value)} but must be a list of 1 to {MAX_TEXTS - 1} texts"
        )
    texts: list[str] = []
    for item in value:
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise ConfigError(
                f"documents contains {show(item)} but each is a string or an object with text"
            )
        texts.append(text)
    return texts


_DOCUMENT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
DOCUMENTS = Checked(
    _documents,
    {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_TEXTS - 1,
        "items": {"anyOf": [{"type": "string"}, _DOCUMENT]},
    },
)


class RerankRequest(RequestModel):
    """The body of `/v1/rerank`."""

    query: str
    documents: Annotated[list[str] | None, DOCUMENTS]
    model: str | None = None
    top_n: Annotated[int | None, number("top_n", Limits(0, INT32_MAX, is_integer=True))] = None
    return_documents: bool | None = None
    truncate_prompt_tokens: Annotated[int | None, TRUNCATE] = None


@router.post("/rerank", openapi_extra=body_schema(RerankRequest))
@router.post("/v1/rerank", openapi_extra=body_schema(RerankRequest))
async def rerank(request: Request) -> dict[str, Any]:
    """Return the documents' indices and scores, the nearest first."""
    body = await read_body(request, RerankRequest)
    server = server_of(request)
    if body.documents is None:
        raise invalid("documents is null but texts are needed", param="documents")
    model, name = embedding_model(server, body.model)
    embedding = Embedding(server, model)
    texts = [body.query, *body.documents]
    vectors = (await embedding.of(texts, body.truncate_prompt_tokens, param="documents")).astype(
        np.float64
    )
    lengths = np.linalg.norm(vectors, axis=1)
    scores = vectors[1:] @ vectors[0] / np.maximum(lengths[1:] * lengths[0], 1e-30)
    results: list[dict[str, Any]] = []
    for index in np.argsort(-scores, kind="stable")[: body.top_n or None]:
        result: dict[str, Any] = {"index": int(index), "relevance_score": float(scores[index])}
        if body.return_documents is not False:
            result["document"] = {"text": body.documents[index]}
        results.append(result)
    answer = {"object": "list", "model": name, "usage": embedding.usage(), "results": results}
    if embedding.truncated:  # text 0 is the query
        answer["capax"] = {"truncated": [i - 1 for i in embedding.truncated]}
    return answer
