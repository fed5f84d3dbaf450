"""One answer out of several: states are voted place by place.

As many states as most answers have, and at each place the most frequent one. Of equally frequent
ones the one that came first is taken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from capax.measuring.procbench.scoring import Prediction


def voted(predictions: Sequence[Prediction | None]) -> Prediction | None:
    """Return what the predictions that could be read agree on most; None if none could be."""
    read = [p for p in predictions if p is not None]
    if not read:
        return None
    n_states = most_frequent([len(p.states) for p in read])
    chains = [p.states for p in read if len(p.states) == n_states]
    shorter_or_longer = [p.intermediate for p in read if len(p.states) != n_states]
    intermediate = [
        most_frequent(
            [chain[i] for chain in chains] + [c[i] for c in shorter_or_longer if i < len(c)]
        )
        for i in range(n_states - 1)
    ]
    return Prediction(intermediate, most_frequent([chain[-1] for chain in chains]))


def most_frequent(values: Sequence[Any]) -> Any:
    """Return the value that is there most often, the first of equals."""
    spelled = [json.dumps(value) for value in values]  # states may be lists
    ((winner, _),) = Counter(spelled).most_common(1)
    return values[spelled.index(winner)]
