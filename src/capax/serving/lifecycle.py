"""From an open listener to a loaded model, and back: load, watch the engine, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from capax.serving.errors import ApiError
from capax.serving.logs import log_failure
from capax.serving.state import Load, Models, Server

WATCH_S = 0.2
POLL_S = 0.02


@asynccontextmanager
async def running(server: Server, load: Load) -> AsyncIterator[None]:
    """Load in the background, run the engine and watch it; end all of it on the way out."""
    async with AsyncExitStack() as stack:
        keeper = asyncio.create_task(_keep(server, load, stack))
        try:
            yield
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper


async def _keep(server: Server, load: Load, stack: AsyncExitStack) -> None:
    from capax.engine.runner import Runner

    try:
        loaded = await asyncio.to_thread(load, server.progress)
        models = loaded if isinstance(loaded, Models) else Models(loaded)
        runner = None
        if models.llm is not None:
            runner = Runner(models.llm, max_queue=server.config.max_queue)
            await stack.enter_async_context(runner)
        server.adopt(models, runner)
    except Exception as error:  # noqa: BLE001  # a border: `failure` has it, the process ends
        server.fail(error)
        return
    if runner is None:
        return
    while runner.error is None:
        await asyncio.sleep(WATCH_S)
    log_failure(runner.error)
    server.fail(runner.error)


async def drain(server: Server) -> None:
    """Take nothing new; wait for what is running, at most `drain_s`, then end it with an error."""
    server.is_draining = True
    clock = asyncio.get_running_loop().time
    deadline = clock() + server.config.drain_s
    while server.exchanges and clock() < deadline:
        await asyncio.sleep(POLL_S)
    for exchange in list(server.exchanges):
        exchange.abort(
            ApiError(503, "the server is shutting down; ask again soon", code="shutting_down")
        )
