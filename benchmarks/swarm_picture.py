"""Draw how often a right minority wins a simulated swarm.

    python -m benchmarks.swarm_picture --out docs/images/swarm.png

Nine answers, three of them right, four sharing one wrong answer: a vote never finds the right one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from capax.scaling.swarm.bradley_terry import fit
from capax.scaling.swarm.simulator import simulate_tables

RIGHT = np.array([True] * 3 + [False] * 6)
JUDGES = (1, 3, 9)
ACCURACIES = np.linspace(0.4, 0.9, 11)
TRIALS = 1000


def share(accuracy: float, judges: int, rng: np.random.Generator) -> float:
    """Return in what share of the trials a right answer is the strongest."""
    tables = simulate_tables(RIGHT, np.full(judges, accuracy), TRIALS, rng)
    return float((fit(tables.sum(1)).argmax(1) < RIGHT.sum()).mean())


def main() -> None:
    """Simulate and draw."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description="a right minority in a simulated swarm")
    parser.add_argument("--out", type=Path, default=Path("docs/images/swarm.png"))
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for judges in JUDGES:
        shares = [share(float(q), judges, rng) for q in ACCURACIES]
        axes.plot(ACCURACIES, shares, "o-", ms=4, label=f"{judges} judge{'s' * (judges > 1)}")
    axes.axhline(0, color="#c2703d", ls="--", label="majority vote")
    axes.axhline(1 / 3, color="#999", ls=":", label="an answer at random")
    axes.set(
        xlabel="accuracy q of a judge's comparison", ylabel="right answer wins", ylim=(-0.03, 1.03)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
