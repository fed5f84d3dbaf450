"""A round as a registry keeps it, and the same strengths from it again, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from capax.errors import FileFormatError
from capax.scaling.swarm.consensus import Comparison, SwarmResult, attempts, strengths


def stored(question: str, result: SwarmResult, weights: Mapping[str, float]) -> dict[str, Any]:
    """Return a round as JSON. `weights`: of every judge that was asked."""
    return {
        "question": question,
        "answers": list(result.answers),
        "weights": dict(weights),
        "bad": [list(pair) for pair in result.bad],
        "comparisons": [
            [c.judge, c.first, c.second, c.verdict, c.share] for c in result.comparisons
        ],
        "theta": [None if math.isnan(x) else x for x in result.theta],
    }


def replay(kept: Mapping[str, Any]) -> list[float | None]:
    """Fit a stored round anew and return its strengths, None for an answer that took no part.

    Raises FileFormatError if they are not those that were stored, or if it is no round.
    """
    try:
        answers, weights = kept["answers"], kept["weights"]
        comparisons = [Comparison(*row) for row in kept["comparisons"]]
        bad = [(str(judge), int(answer)) for judge, answer in kept["bad"]]
        parts = attempts(len(answers), bad, weights)
        theta, _ = strengths(answers, parts, comparisons, weights)
        expected = kept["theta"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise FileFormatError(f"a stored round cannot be read: {e!r:.80}") from None
    found = [None if math.isnan(x) else x for x in theta]
    if found != expected:
        raise FileFormatError(
            "a stored round gives other strengths than it holds: the verdicts or the fit changed"
        )
    return found


def is_replayable(entry: Mapping[str, Any]) -> bool:
    """Say whether an entry of a registry is a round that holds its verdicts."""
    verdicts = entry.get("verdicts")
    return isinstance(verdicts, Mapping) and "theta" in verdicts
