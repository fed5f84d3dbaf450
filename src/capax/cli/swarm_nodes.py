"""What the commands of swarms share: their options, and opening the models that a file names."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from capax.cli.asked import open_endpoint
from capax.cli.options import json_option, machine_options

if TYPE_CHECKING:
    from capax.endpoints import Endpoint, Ledger
    from capax.scaling.swarm.consensus import Node
    from capax.scaling.swarm.nodes_file import NodeLine


F = TypeVar("F", bound=Callable[..., Any])

registry_option = click.option(
    "--registry", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="Where attempts and reputations are kept.",
)  # fmt: skip
judge_mode_option = click.option(
    "--judge-mode", type=click.Choice(["reason", "letters"]), default="reason", show_default=True,
    help="Judges write a reason and a letter, or the letters' probabilities count.",
)  # fmt: skip


def nodes_options(function: F) -> F:
    """Add --seed, --json and what the nodes may take, given to the command as `limits`."""

    @functools.wraps(function)
    def collected(**given: Any) -> Any:
        limits = {name: given.pop(name) for name in ("ctx_size", "threads", "memory")}
        return function(limits=limits, **given)

    for option in (
        json_option,
        machine_options,
        click.option(
            "-c", "--ctx-size", type=click.IntRange(1), metavar="N", help="Context in tokens."
        ),
        click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed."),
    ):
        collected = option(collected)
    return cast(F, collected)


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
