"""`capax train procbench`: a tiny model that follows one procedure, as GGUF."""

from __future__ import annotations

from dataclasses import dataclass

from capax.measuring.procbench.specialty import Specialty, specialty_named
from capax.training.record_run import RecordRecipe


@dataclass(frozen=True, kw_only=True)
class ProcbenchRecipe(RecordRecipe):
    """What is trained on what. `task`: Rhythm or PushPop."""

    task: str = "Rhythm"
    tokens: int = 4096

    def learnt(self) -> Specialty:
        return specialty_named(self.task)
