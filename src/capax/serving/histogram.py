"""A Prometheus histogram that counts many equal observations in one call.

One token is one observation; a step of sixteen streams is sixteen. All observations come from
the event loop, so nothing is locked.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily

# vLLM's edges, with their long tail: a CPU needs it.
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    """Counts of values up to each edge, and their sum."""

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = tuple(edges)
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value` this many times."""
        self._counts[bisect_left(self._edges, value)] += count
        self._sum += value * count

    def family(self, name: str, text: str, labels: dict[str, str]) -> HistogramMetricFamily:
        """Return it as Prometheus wants it: cumulative, the last edge infinite."""
        family = HistogramMetricFamily(name, text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), list(self._cumulative()), self._sum)
        return family

    def _cumulative(self) -> Iterable[tuple[str, float]]:
        total = 0
        for edge, count in zip((*self._edges, math.inf), self._counts, strict=True):
            total += count
            yield ("+Inf" if edge == math.inf else str(edge)), total
