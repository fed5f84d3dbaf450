"""The nodes of a served swarm: their models beside the server's own, in this process or elsewhere.

A node that names the server's own model shares its engine, as part of the request: same tenant,
same queue, ended with it. Other models of this machine have engines of their own, loaded once
however many nodes they stand behind; nodes with a `base_url` are asked over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from capax.endpoints import Endpoint
from capax.errors import ConfigError
from capax.files.registry import resolve
from capax.kv import PAGE_TOKENS
from capax.scaling.swarm.members import Members, chosen_among
from capax.scaling.swarm.nodes_file import NodeLine, shares_of_memory

if TYPE_CHECKING:
    from capax import LLM
    from capax.endpoints.http import HTTPEndpoint

PREFIX = "swarm:"  # of the name that clients call the whole swarm
PARALLEL = 16  # answers of a node's model in one step
ATTEMPTS = 2  # at a call to another server: somebody waits
CONTEXTS = 4  # whole contexts of its KV cache


@dataclass(frozen=True)
class NodesFile:
    """What `--nodes` names. `name`: of the swarm; weights and standing as in `Members`."""

    name: str
    lines: Sequence[NodeLine]
    weights: Mapping[str, float] | None = None
    standing: Mapping[str, float] | None = None

    def check(self, names: str) -> None:
        """Raise ConfigError unless 'all' or ids joined by '+' spell nodes that there are."""
        chosen_among([line.id for line in self.lines], names)


@dataclass(frozen=True)
class LoadedNodes:
    """The models of nodes, loaded; `models` by `NodeLine.model`, without the server's own."""

    file: NodesFile
    own: frozenset[str]  # what nodes call the server's model
    models: Mapping[str, LLM] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory that the plans of these models hold, beyond what the process takes anyway."""
        plans = [llm.plan.footprint for llm in self.models.values()]
        return sum(plan.total - plan.base for plan in plans)

    async def open(self, stack: AsyncExitStack) -> Nodes:
        """Start engines and connections; `stack` ends them."""
        from capax.endpoints.local import LocalEndpoint

        endpoints: dict[tuple[str, str | None], Endpoint] = {}
        for line in self.file.lines:
            if line.place in endpoints or self._is_own(line):
                continue
            if line.base_url is None:
                local = LocalEndpoint(self.models[line.model])
                endpoints[line.place] = await stack.enter_async_context(local)
            else:
                endpoints[line.place] = await stack.enter_async_context(remote(line))
        return Nodes(self.file, endpoints)

    def _is_own(self, line: NodeLine) -> bool:
        return line.base_url is None and line.model in self.own


@dataclass(frozen=True)
class Nodes:
    """Nodes that can be asked; what is not in `endpoints` is the server's own model."""

    file: NodesFile
    endpoints: Mapping[tuple[str, str | None], Endpoint]

    def members(self, own: Endpoint) -> Members:
        """Return the nodes for one request, whose endpoint of the server's model is `own`."""
        nodes = [line.node(self.endpoints.get(line.place, own)) for line in self.file.lines]
        return Members(nodes, self.file.weights, self.file.standing)


def remote(line: NodeLine) -> HTTPEndpoint:
    """Return the endpoint of a node on another server, an asynchronous context."""
    try:
        from capax.endpoints.http import HTTPEndpoint, HTTPSettings
    except ImportError:
        raise ConfigError("nodes of other servers need: pip install 'capax[scale]'") from None
    assert line.base_url is not None
    return HTTPEndpoint(
        line.base_url,
        line.model,
        api_key=line.api_key,
        settings=HTTPSettings(max_attempts=ATTEMPTS),
    )


def load_nodes(
    file: NodesFile, model: str | Path, *, memory: int | None, threads: int | None,
    ctx_size: int | None,
) -> tuple[LoadedNodes, int | None]:  # fmt: skip
    """Load the models of nodes that are not `model`; returns them and what is left of `memory`.

    The limit is shared out by the sizes of the files.
    """
    from capax import LLM

    here = [line for line in file.lines if line.base_url is None]
    served = resolve(model).resolve()
    own = frozenset(line.model for line in here if resolve(line.model).resolve() == served)
    others = [line for line in here if line.model not in own]
    shares = shares_of_memory(others, memory, beside=[str(model)])
    models = {}
    for name in dict.fromkeys(line.model for line in others):
        models[name] = LLM(
            name, memory=shares.get(name), threads=threads, ctx_size=ctx_size,
            n_sequences=n_contexts(name, ctx_size), parallel=PARALLEL,
        )  # fmt: skip
    loaded = LoadedNodes(file, own, models)
    return loaded, None if memory is None else max(1, memory - loaded.nbytes)


def n_contexts(model: str, ctx_size: int | None) -> int:
    """Return whole contexts of KV cache: a few, and pages for every answer in a step."""
    from capax.files.model_file import open_model

    length = ctx_size or open_model(resolve(model)).config.context_len
    return max(CONTEXTS, -(-2 * PARALLEL * PAGE_TOKENS // max(length, PAGE_TOKENS)))


def read_file(nodes: Path, registry: Path | None) -> NodesFile:
    """Read the file of nodes and, where there is one, what a registry says of them.

    Raises ConfigError if the registry admits none of the judges.
    """
    from capax.scaling.swarm.nodes_file import read_nodes
    from capax.scaling.swarm.registry import Registry

    lines, name = read_nodes(nodes), nodes.stem
    if registry is None:
        return NodesFile(name, lines)
    if not registry.exists():
        raise ConfigError(f"{registry} does not exist; 'capax scale swarm admit' begins one")
    known = Registry(registry)
    weights = {line.id: known.weights().get(line.id, 0.0) for line in lines if line.judges}
    if not any(weights.values()):
        raise ConfigError(
            f"no judge of {nodes} has any weight in {registry}; run 'capax scale swarm admit'"
        )
    return NodesFile(name, lines, weights, known.standings(line.id for line in lines))
