"""The file that names the nodes of a swarm: a JSON array, one object for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from capax.decoding.params import SamplingParams
from capax.endpoints import Endpoint
from capax.errors import ConfigError
from capax.files.model_file import open_model
from capax.files.registry import resolve
from capax.scaling.swarm.consensus import Node
from capax.scaling.swarm.judging import CHAT, Prompts, Templates

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
    letters: tuple[str, str] | None = None
    thought_tokens: int = 0


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

    @property
    def place(self) -> tuple[str, str | None]:
        """Which model it stands before: nodes may share one."""
        return self.model, self.base_url

    @property
    def prompts(self) -> Prompts:
        """How it is asked. Raises ConfigError for a form that is none."""
        return CHAT if self.form is None else Templates(**msgspec.structs.asdict(self.form))

    def node(self, endpoint: Endpoint) -> Node:
        """Return the node behind an endpoint."""
        params = SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens)
        return Node(self.id, endpoint, params, self.answers, self.judges, self.prompts)


def read_nodes(path: Path) -> list[NodeLine]:
    """Read a JSON array of nodes. Raises ConfigError saying what is wrong with it."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_NBYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from None
    if len(raw) > MAX_NBYTES:
        raise ConfigError(f"{path} has more than {MAX_NBYTES:,} bytes: it is no list of nodes")
    try:
        found = msgspec.json.decode(raw, type=list[NodeLine])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{path} is no list of nodes: {e}") from None
    if not 1 <= len(found) <= MAX_NODES:
        raise ConfigError(f"{path} names {len(found)} nodes; 1 to {MAX_NODES} are possible")
    if len({node.id for node in found}) < len(found):
        raise ConfigError(f"{path} names a node twice; ids must differ")
    for node in found:
        _ = node.prompts  # raises
        beside = path.parent / node.model  # a file is looked for beside the list first
        if node.base_url is None and beside.is_file():
            node.model = str(beside)
    return found


def shares_of_memory(
    lines: Sequence[NodeLine], memory: int | None, beside: Sequence[str] = ()
) -> dict[str, int]:
    """Return what each model of this machine may take of `memory`, by the size of its file.

    `beside`: further models that share it. Nothing is returned without a limit.
    """
    if memory is None:
        return {}
    names = dict.fromkeys([*beside, *(line.model for line in lines if line.base_url is None)])
    sizes = {name: open_model(resolve(name)).nbytes for name in names}
    total = sum(sizes.values())
    return {name: memory * size // total for name, size in sizes.items()}
