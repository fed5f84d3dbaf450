"""How much a run may take."""

from __future__ import annotations

from dataclasses import dataclass

from capax.errors import ConfigError
from capax.planning.machine import Machine
from capax.planning.sizes import MAX_NBYTES, format_size


@dataclass(frozen=True, slots=True)
class Budget:
    """Hard limits on a run.

    `memory`: bytes for everything capax holds: weights and their packed copies, KV cache,
    scratch, tokenizer, and the interpreter itself. None: what the machine has available.
    """

    memory: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and not 1 <= self.memory <= MAX_NBYTES:
            raise ConfigError(f"memory is {self.memory}; it must be between 1 byte and 1 PiB")

    def resolve(self, machine: Machine) -> Limit:
        """Return the bytes that bind here: the budget, the cgroup, or what is available.

        The stated budget is not lowered to what happens to be free at the moment, but never
        exceeds the RAM of the machine or the limit of its cgroup: beyond those lies the OOM
        killer, not a slower run.
        """
        if self.memory is None:
            source = "available memory" if machine.memory_limit is None else "cgroup limit"
            return Limit(machine.memory_available, source)
        bounds = [Limit(self.memory, "budget")]
        if machine.memory_total:
            bounds.append(Limit(machine.memory_total, "memory of this machine"))
        if machine.memory_limit is not None:
            bounds.append(Limit(machine.memory_limit, "cgroup limit"))
        return min(bounds, key=lambda limit: limit.nbytes)


@dataclass(frozen=True, slots=True)
class Limit:
    """The bytes a plan must stay below, and where the figure comes from."""

    nbytes: int
    source: str

    def __str__(self) -> str:
        return f"{format_size(self.nbytes)} ({self.source})"
