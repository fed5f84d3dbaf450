"""Opening the models that a file of nodes names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from capax.cli.asked import open_endpoint

if TYPE_CHECKING:
    from capax.endpoints import Endpoint, Ledger
    from capax.scaling.swarm.consensus import Node
    from capax.scaling.swarm.nodes_file import NodeLine


@asynccontextmanager
async def open_nodes(
    lines: list[NodeLine], limits: dict[str, Any], ledger: Ledger
) -> AsyncIterator[list[Node]]:
    """Open every model once, however many nodes it stands behind.

    A limit of memory holds for all models of this machine together; each gets its share by size.
    """
    from capax.scaling.swarm.nodes_file import shares_of_memory

    shares = shares_of_memory(lines, limits.get("memory"))
    async with AsyncExitStack() as stack:
        opened: dict[tuple[str, str | None], Endpoint] = {}
        for line in lines:
            if line.place not in opened:
                own = {**limits, "memory": shares.get(line.model, limits.get("memory"))}
                opened[line.place] = await stack.enter_async_context(
                    open_endpoint(
                        line.model, line.base_url, line.api_key, own, parallel=16, ledger=ledger
                    )
                )
        yield [line.node(opened[line.place]) for line in lines]
