"""Records made up for tests."""

from __future__ import annotations

from typing import Any

from capax.measuring.records import Data, Figure, Model, Record


def record(name: str = "small", value: float | None = 2.0, **fields: Any) -> Record:
    """A perplexity of `value`, one seventh wide."""
    interval = None if value is None else (value - 0.2, value + 0.2)
    defaults: dict[str, Any] = {
        "kind": "perplexity",
        "time": "2026-01-02T03:04:05Z",
        "model": Model(name=name, digest=name * 2, weights_nbytes=1000, n_params=10),
        "data": Data(name="text.txt", digest="d" * 64, n_items=4),
        "method": {"weights": "Q4_1", "kv": "f16"},
        "settings": {"context": 64, "windows": None},
        "machine": {"cpu": "one", "threads": 2},
        "figures": (
            Figure(name="perplexity", value=value, interval=interval, higher_is_better=False),
            Figure(name="speed", value=8.0, unit="token/s", of_machine=True, higher_is_better=True),
        ),
    }
    return Record(**{**defaults, **fields})
