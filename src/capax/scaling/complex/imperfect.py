"""A verifier of tunable soundness: the exact one, made wrong on purpose.

For experiments with verifiers that are not perfect, where the truth is known: a right answer is
accepted with probability `sensitivity`, a wrong one with probability 1 - `soundness`. The draw is a
function of (seed, instance, answer), so a verifier does not change its mind about the same answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from capax.errors import ConfigError
from capax.scaling.complex.families import family_named
from capax.scaling.complex.instance import Instance


@dataclass(frozen=True, slots=True)
class ImperfectVerifier:
    """See the module. Probabilities from 0 to 1."""

    soundness: float
    sensitivity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("soundness", "sensitivity"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value} but must be 0 to 1")

    def accepts(self, instance: Instance, answer: str | None) -> bool:
        """Say whether it takes an extracted answer for right; never an unreadable one."""
        if answer is None:
            return False
        content = f"{self.seed}\0{instance.key}\0{answer}".encode()
        draw = int.from_bytes(hashlib.sha256(content).digest()[:7], "big") / 2**56
        if family_named(instance.family).is_right(instance.truth, answer):
            return draw < self.sensitivity
        return draw >= self.soundness
