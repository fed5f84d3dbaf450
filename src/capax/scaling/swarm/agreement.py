"""How far each judge agrees with the consensus of all the others.

Shown, and the ground on which stakes are lost; it never earns weight (`reputation`), since a block
of judges that agree with each other would raise its own. A block above a quarter of the judges can
make honest ones look contrary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capax.scaling.swarm.bradley_terry import aggregate
from capax.scaling.swarm.consensus import Comparison, tables_of

DECIDED = 1.0  # difference of strengths from which the others count as having decided


def agreement(
    answers: Sequence[str], kept: Sequence[int], comparisons: Sequence[Comparison],
    weights: Mapping[str, float],
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Return for each judge how many of its verdicts agree with the others, and how many do not.

    A verdict counts where the others' strengths, fitted without this judge, differ by more than 1,
    and where it is not undecided. `kept`: the answers that took part.
    """
    texts = [answers[i] for i in kept]
    place = {answer: at for at, answer in enumerate(kept)}
    found = {}
    for judge in sorted({c.judge for c in comparisons}):
        others = {name: w for name, w in weights.items() if name != judge}
        tables, scaled = tables_of(kept, comparisons, others)
        same, other = 0, 0
        if tables:
            theta = aggregate(texts, tables, scaled).theta
            for c in comparisons:
                if c.judge != judge or c.first not in place or c.second not in place:
                    continue
                apart = float(theta[place[c.first]] - theta[place[c.second]])
                if abs(apart) > DECIDED and c.verdict != "U":
                    agrees = (apart > 0) == (c.verdict == "A")
                    same, other = same + agrees, other + (not agrees)
        found[judge] = (same, other)
    return found
