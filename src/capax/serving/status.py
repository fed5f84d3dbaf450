"""/capax/v1/status: everything the capacity panel shows, in one small document."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

import capax
from capax._native import isa
from capax.serving.state import resident_nbytes, server_of

if TYPE_CHECKING:
    from capax.engine.runner import EngineStats
    from capax.planning.plan import Plan

router = APIRouter(tags=["capacity"])


@router.get("/capax/v1/status")
async def status(request: Request) -> dict[str, Any]:
    """Return how the budget is spent, and what was done since the start.

    Token counts only grow: a reader makes rates of two documents and their `clock_s`.
    """
    server = server_of(request)
    llm, stats = server.llm, server.runner.stats()
    return {
        "model": server.model_name,
        "version": capax.__version__,
        "created": server.created,
        "clock_s": round(time.monotonic(), 3),
        "context_len": llm.context_len,
        "kv_type": llm.plan.kv_type,
        "threads": llm.plan.threads,
        "isa": isa(),
        "memory": {**parts(llm.plan, stats), "resident_bytes": resident_nbytes()},
        "requests": {"running": stats.n_running, "waiting": stats.n_waiting},
        "tokens": {"prompt": stats.prompt_tokens, "generation": stats.generation_tokens},
        "prefix": {
            "query_tokens": stats.prefix_query_tokens,
            "hit_tokens": stats.prefix_hit_tokens,
        },
        "preemptions": stats.n_preemptions,
    }


def parts(plan: Plan, stats: EngineStats) -> dict[str, int]:
    """Return the plan's bytes by what holds them, the KV cache divided as its pages are now.

    All but `limit_bytes` together are what is planned.
    """
    held = plan.footprint
    n_pages = max(1, stats.kv_pages_total)
    kv_used = held.kv * stats.kv_pages_used // n_pages
    kv_cached = held.kv * stats.kv_pages_cached // n_pages
    return {
        "limit_bytes": plan.limit.nbytes,
        "weights_bytes": held.weights + held.streaming,
        "kv_used_bytes": kv_used,
        "kv_cached_bytes": kv_cached,
        "kv_free_bytes": max(0, held.kv - kv_used - kv_cached),
        "scratch_bytes": held.scratch,
        "other_bytes": held.total - held.weights - held.streaming - held.kv - held.scratch,
    }
