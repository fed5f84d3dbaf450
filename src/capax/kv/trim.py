"""TRIM-KV: cache what lasts (December 2025, arXiv 2512.03324).

Idea. When a token is written, a small gate of its layer predicts from the layer's input, for each
KV head, how long the token will be worth keeping: beta in (0, 1). After a while it is worth
beta^age, and when a head is full those worth least go. Neither attention weights nor later tokens
are looked at; only the gates are trained (`capax.training.retention`).
Keeps: of each KV head its own tokens; log beta float32 per entry, because in f16 the longest-lived
would all be 0 and tie.
Costs: the gates, n_layers * width * d_model multiply-adds per token, W1 in bfloat16.
Decided here: of a token at position p the age at position t is t - p + 1; the newest counts 1.
Attention itself is exact over what is kept: there is no decay in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from capax.errors import ConfigError
from capax.files.config import ModelConfig
from capax.files.model_file import ModelFile
from capax.kv.bounded import BoundedMethod, Entries, Policy, Scores, recent
from capax.kv.cache import AttentionInput, Floats
from capax.kv.retention_gates import read_gates, read_header
from capax.methods import Method, register


class Gates(Protocol):
    """What says how long a token is worth keeping."""

    def log_beta(self, layer: int, x: Floats) -> Floats:
        """Return [n_kv_heads, t] for x [t, d_model], at most 0."""
        ...


class TrimPolicy(Policy):
    """The score is log beta^age.

    `window`, `sinks`: so many of the last and of the first tokens stay whatever it says.
    """

    def __init__(self, gates: Gates, window: int = 0, sinks: int = 0) -> None:
        self._gates, self._window, self._sinks = gates, window, sinks

    def written(self, layer: int, inputs: AttentionInput) -> Floats:
        return self._gates.log_beta(layer, inputs.x())

    def scores(self, entries: Entries) -> Scores:
        age = entries.now - entries.positions.astype(np.float64) + 1
        stay = recent(entries, self._window) | (entries.positions < self._sinks)
        return np.where(stay, np.inf, entries.numbers * age)


@dataclass(frozen=True, kw_only=True)
class Trim(BoundedMethod):
    """Options: the file of gates; how many recent and first tokens stay whatever the gates say.

    `sinks`: gates may lose the first tokens of a text unlike those they were trained on.
    """

    notes: ClassVar[bool] = True
    gates: str
    window: int = 0
    sinks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0 or self.sinks < 0 or self.window + self.sinks > self.memory:
            raise ConfigError(
                f"window={self.window} and sinks={self.sinks} are not in 0..memory = {self.memory}"
            )

    def shared_nbytes(self, config: ModelConfig) -> int:
        """Return the bytes of the gates."""
        return read_header(self.gates).nbytes

    def policy(self, model: ModelFile) -> Policy:
        """Return what decides. Raises FileFormatError for gates of another model."""
        return TrimPolicy(read_gates(self.gates, model), self.window, self.sinks)


register(
    Method(
        "trim",
        "kv",
        "TRIM-KV, 2025, arXiv 2512.03324",
        "Keep what small trained gates expect to last.",
        Trim,
    )
)
