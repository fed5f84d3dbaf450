"""/v1/models: the model that is served, and the embedding model beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from capax.serving.errors import check_model
from capax.serving.nodes import PREFIX
from capax.serving.state import Server, server_of
from capax.serving.strategies import WHOLE_SWARM

if TYPE_CHECKING:
    from capax import LLM, Embedder

router = APIRouter(tags=["models"])


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def models(request: Request) -> dict[str, Any]:
    """List the models."""
    return {"object": "list", "data": list(descriptions(server_of(request)).values())}


@router.get("/v1/models/{model_id:path}")
@router.get("/models/{model_id:path}", include_in_schema=False)
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """Describe the model by its name. 404 for any other name."""
    server = server_of(request)
    found = descriptions(server)
    if model_id not in found:
        check_model(server, model_id)
    return found.get(model_id) or found[server.model_name]


def descriptions(server: Server) -> dict[str, dict[str, Any]]:
    """Return the models by name as the models API shows them."""
    found = {server.model_name: _describe(server, server.model_name, server.primary)}
    if server.has_llm and server.embedder is not None:
        name = server.config.embedding_model_name
        found[name] = _describe(server, name, server.embedder)
    if server.nodes is not None:
        name = PREFIX + server.nodes.file.name
        found[name] = _describe(server, name, server.primary)
        found[name]["meta"]["strategy"] = WHOLE_SWARM
        found[name]["meta"]["nodes"] = [line.id for line in server.nodes.file.lines]
    return found


def _describe(server: Server, name: str, llm: LLM | Embedder) -> dict[str, Any]:
    """Return one model, with llama-server's `meta` block."""
    strategy = server.config.strategy if llm is not server.embedder else None
    return {
        "id": name,
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
            **({"strategy": strategy} if strategy else {}),
        },
    }
