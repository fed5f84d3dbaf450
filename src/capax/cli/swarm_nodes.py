"""The file that names the nodes of a swarm, and opening their models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from capax.cli.asked import open_endpoint
from capax.errors import ConfigError

if TYPE_CHECKING:
    from capax.endpoints import Endpoint, Ledger
    from capax.scaling.swarm.consensus import Node

MAX_NBYTES = 1 << 20
MAX_NODES = 128


class TemplatesLine(msgspec.Struct, forbid_unknown_fields=True):
    """How a model that was trained to judge is asked; see `judging.Templates`."""

    ask: str
    judge: str
    first_better: str
    second_better: str
    kept: str = ""
    read_answer: str = ""


class NodeLine(msgspec.Struct, forbid_unknown_fields=True):
    """One node: a model of this machine, or a server's with its `base_url`."""

    id: str
    model: str
    base_url: str | None = None
    api_key: str | None = None
    temperature: float = 0.7
    max_tokens: int = 512
    answers: bool = True
    judges: bool = True
    form: TemplatesLine | None = None


def read_nodes(path: Path) -> list[NodeLine]:
    """Read a JSON array of nodes. Raises ConfigError saying what is wrong with it."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_NBYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    try:
        found = msgspec.json.decode(raw[:MAX_NBYTES], type=list[NodeLine])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path} is no list of nodes: {e}") from None
    if not 1 <= len(found) <= MAX_NODES:
        raise ConfigError(f"{path} names {len(found)} nodes; 1 to {MAX_NODES} are possible")
    if len({node.id for node in found}) < len(found):
        raise ConfigError(f"{path} names a node twice; ids must differ")
    for node in found:  # a file is looked for beside the list first
        beside = path.parent / node.model
        if node.base_url is None and beside.is_file():
            node.model = str(beside)
    return found


@asynccontextmanager
async def open_nodes(
    lines: list[NodeLine], limits: dict[str, Any], ledger: Ledger
) -> AsyncIterator[list[Node]]:
    """Open every model once, however many nodes it stands behind."""
    from capax import SamplingParams
    from capax.scaling.swarm.consensus import Node
    from capax.scaling.swarm.judging import CHAT, Templates

    async with AsyncExitStack() as stack:
        opened: dict[tuple[str, str | None], Endpoint] = {}
        nodes = []
        for line in lines:
            key = (line.model, line.base_url)
            if key not in opened:
                opened[key] = await stack.enter_async_context(
                    open_endpoint(
                        line.model, line.base_url, line.api_key, limits, parallel=16, ledger=ledger
                    )
                )
            params = SamplingParams(temperature=line.temperature, max_tokens=line.max_tokens)
            form = line.form
            prompts = CHAT if form is None else Templates(**msgspec.structs.asdict(form))
            nodes.append(Node(line.id, opened[key], params, line.answers, line.judges, prompts))
        yield nodes
