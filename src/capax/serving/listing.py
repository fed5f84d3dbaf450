"""/v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from capax.serving.errors import check_model
from capax.serving.state import Server, server_of

router = APIRouter(tags=["models"])


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """List the model."""
    return {"object": "list", "data": [describe(server_of(request))]}


@router.get("/v1/models/{model_id:path}")
@router.get("/models/{model_id:path}", include_in_schema=False)
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """Describe the model by its name. 404 for any other name."""
    server = server_of(request)
    check_model(server, model_id)
    return describe(server)


def describe(server: Server) -> dict[str, Any]:
    """Return the model as the models API shows it, with llama-server's `meta` block."""
    llm = server.llm
    return {
        "id": server.model_name,
        "object": "model",
        "created": server.created,
        "owned_by": "capax",
        "max_model_len": llm.context_len,
        "meta": {
            "n_ctx": llm.context_len,
            "n_ctx_train": llm.config.context_len,
            "n_embd": llm.config.d_model,
            "n_vocab": llm.config.vocab_size,
            "size": llm.plan.footprint.weights,
        },
    }
