"""/capax/v1/status: everything the capacity panel shows, in one small document."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

import capax
from capax._native import isa
from capax.serving.capacity import planned_nbytes
from capax.serving.state import Server, resident_nbytes, server_of

if TYPE_CHECKING:
    from capax.engine.runner import EngineStats

router = APIRouter(tags=["capacity"])


@router.get("/capax/v1/status")
async def status(request: Request) -> dict[str, Any]:
    """Return how the budget is spent, and what was done since the start.

    Token counts only grow: a reader makes rates of two documents and their `clock_s`. Raises
    ApiError 501 where no model writes text.
    """
    server = server_of(request)
    llm, stats = server.llm, server.runner.stats()
    return {
        "model": server.model_name,
        "version": capax.__version__,
        "created": server.created,
        "clock_s": round(time.monotonic(), 3),
        "context_len": llm.context_len,
        "kv": llm.plan.kv,
        "threads": llm.plan.threads,
        "isa": isa(),
        "sampling_defaults": server.sampling_defaults,
        "memory": {**memory_parts(server, stats), "resident_bytes": resident_nbytes()},
        "requests": {"running": stats.n_running, "waiting": stats.n_waiting},
        "tokens": {"prompt": stats.prompt_tokens, "generation": stats.generation_tokens},
        "prefix": {
            "query_tokens": stats.prefix_query_tokens,
            "hit_tokens": stats.prefix_hit_tokens,
        },
        "preemptions": stats.n_preemptions,
    }


def memory_parts(server: Server, stats: EngineStats) -> dict[str, int]:
    """Return the planned bytes by what holds them, the KV cache divided as its pages are now.

    All but `limit_bytes` together are what is planned.
    """
    planned = planned_nbytes(server)
    n_pages = max(1, stats.kv_pages_total)
    kv_used = planned["kv"] * stats.kv_pages_used // n_pages
    kv_cached = planned["kv"] * stats.kv_pages_cached // n_pages
    weights = planned["weights"] + planned["streaming"]
    return {
        "limit_bytes": server.limit_nbytes,
        "weights_bytes": weights,
        "kv_used_bytes": kv_used,
        "kv_cached_bytes": kv_cached,
        "kv_free_bytes": max(0, planned["kv"] - kv_used - kv_cached),
        "scratch_bytes": planned["scratch"],
        "other_bytes": planned["total"] - weights - planned["kv"] - planned["scratch"],
    }
