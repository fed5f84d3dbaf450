"""Where chains break: survival over steps, and the constant hazard that fits it best.

The first error at step i is an event, a chain that is right to its end s is censored there:

    h_i = #{PML = i - 1, s >= i} / #{PML >= i - 1, s >= i}      S(i) = prod (1 - h_j), j <= i

(Kaplan-Meier). Over problems of one length S(i) is the fraction with PML >= i; over several
lengths the two differ, and both are reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Chain(NamedTuple):
    """How many leading states of a problem with `steps` were right."""

    pml: int
    steps: int


@dataclass(frozen=True, slots=True)
class Survival:
    """One step: chains at risk, their hazard, survival so far, and the plain fraction."""

    step: int
    n_at_risk: int
    hazard: float
    survival: float
    fraction: float  # of the chains with s >= step, those with PML >= step


def kaplan_meier(chains: Sequence[Chain]) -> list[Survival]:
    """Return the survival at every step, up to the last that a chain reached."""
    found, survival = [], 1.0
    for step in range(1, max((c.steps for c in chains), default=0) + 1):
        long = [c for c in chains if c.steps >= step]
        at_risk = sum(c.pml >= step - 1 for c in long)
        if at_risk == 0:
            break
        right = sum(c.pml >= step for c in long)
        survival *= right / at_risk
        found.append(Survival(step, at_risk, 1 - right / at_risk, survival, right / len(long)))
    return found


@dataclass(frozen=True, slots=True)
class ConstantHazard:
    """P(all of s steps right) = (1 - hazard)^s, fitted by maximum likelihood.

    `r2`: of that curve against the fractions right to the end, one per s; None if they are all
    equal. `half_steps`: the s where the curve is 0.5; None if no chain broke.
    """

    hazard: float
    r2: float | None
    half_steps: float | None


def constant_hazard(chains: Sequence[Chain]) -> ConstantHazard | None:
    """Fit failures / steps at risk; None without chains."""
    at_risk = sum(min(c.pml + 1, c.steps) for c in chains)
    if at_risk == 0:
        return None
    hazard = sum(c.pml < c.steps for c in chains) / at_risk
    lengths = sorted({c.steps for c in chains})
    whole = [
        sum(c.pml == c.steps for c in chains if c.steps == s) / sum(c.steps == s for c in chains)
        for s in lengths
    ]
    mean = math.fsum(whole) / len(whole)
    spread = math.fsum((y - mean) ** 2 for y in whole)
    left = math.fsum((y - (1 - hazard) ** s) ** 2 for s, y in zip(lengths, whole, strict=True))
    if hazard == 0:
        half = None
    else:
        half = math.log(0.5) / math.log1p(-hazard) if hazard < 1 else 0.0
    return ConstantHazard(hazard, 1 - left / spread if spread > 0 else None, half)
