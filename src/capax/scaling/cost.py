"""What repeated sampling costs: operations with the prompt paid once, and money.

"Large Language Monkeys" (2024, arXiv 2407.21787), section 2.3. A token at context t takes
f(t) = 2 * (parameters + 2 * layers * d_model * t) operations. The prompt's p tokens are computed
once, the d tokens of an answer for each of K samples:

    F = sum over t = 1..p of f(t) + K * sum over t = 1..d of f(p + t)

That holds only where the engine shares the prompt between samples, as the local one does; against
a server that does not, ask for `shared=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from capax.errors import ConfigError
from capax.scaling.coverage import Counts, samples_needed


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formula needs to know of a model."""

    n_parameters: int
    n_layers: int
    d_model: int


def flops(shape: Shape, prompt_tokens: int, new_tokens: int, n: int, *, shared: bool = True) -> int:
    """Return the operations of n samples of one problem; exact, in whole numbers."""
    p, d = prompt_tokens, new_tokens
    per_position = 2 * shape.n_layers * shape.d_model
    prompt = 2 * shape.n_parameters * p + per_position * p * (p + 1)
    answer = 2 * shape.n_parameters * d + per_position * (2 * p * d + d * (d + 1))
    return (prompt if shared else n * prompt) + n * answer


def money(per_attempt: float, attempts: int, n_problems: int) -> float:
    """Return attempts x price per attempt x problems."""
    return per_attempt * attempts * n_problems


class Priced(NamedTuple):
    """What a model needs for a coverage; None where its samples do not reach it."""

    name: str
    samples: int | None
    cost: float | None


def cost_at_coverage(target: float, runs: Sequence[tuple[str, Counts, float]]) -> list[Priced]:
    """Compare runs (name, counts, cost per sample) of the same problems, cheapest first.

    Raises ConfigError if they differ in the number of problems.
    """
    sizes = {counts.n_problems for _, counts, _ in runs}
    if len(sizes) != 1:
        raise ConfigError(f"runs have {sorted(sizes)} problems; compare runs of the same ones")
    priced = []
    for name, counts, per_sample in runs:
        samples = samples_needed(counts, target)
        cost = None if samples is None else samples * per_sample * counts.n_problems
        priced.append(Priced(name, samples, cost))
    return sorted(priced, key=lambda row: (row.cost is None, row.cost or 0.0))
