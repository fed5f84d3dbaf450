"""From an open listener to a loaded model, and back: load, watch the engine, drain."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from capax.serving.errors import ApiError
from capax.serving.logs import log_failure
from capax.serving.state import Load, Models, Server

if TYPE_CHECKING:
    from capax import LLM

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
        loaded = await _loaded(server, load)
        models = loaded if isinstance(loaded, Models) else Models(loaded)
        runner = None
        if models.llm is not None:
            runner = Runner(models.llm, max_queue=server.config.max_queue)
            await stack.enter_async_context(runner)
        nodes = None if models.nodes is None else await models.nodes.open(stack)
        server.adopt(models, runner, nodes)
    except Exception as error:  # noqa: BLE001  # a border: `failure` has it, the process ends
        server.fail(error)
        return
    if runner is None:
        return
    while runner.error is None:
        await asyncio.sleep(WATCH_S)
    log_failure(runner.error)
    server.fail(runner.error)


async def _loaded(server: Server, load: Load) -> LLM | Models:
    """Load in a thread that nobody waits for: weights cannot be told to stop coming."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[LLM | Models] = loop.create_future()

    def settle(loaded: LLM | Models | None, error: Exception | None) -> None:
        if result.done():  # cancelled: the server is going
            return
        if error is not None:
            result.set_exception(error)
        elif loaded is not None:
            result.set_result(loaded)

    def run() -> None:
        loaded, failure = None, None
        try:
            loaded = load(server.progress)
        except Exception as error:  # noqa: BLE001  # a border: raised where it is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, loaded, failure)

    threading.Thread(target=run, name="capax-load", daemon=True).start()
    return await result


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
