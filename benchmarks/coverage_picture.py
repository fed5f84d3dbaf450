"""Draw coverage of the published Pythia counts, with fits, for docs/repeated-sampling.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from capax.scaling.coverage import Counts, coverage, fit_power_law, log_spaced

COUNTS = Path(__file__).parents[1] / "tests" / "acceptance" / "data" / "pythia_math_correct.txt"
OUT = Path(__file__).parents[1] / "docs" / "images" / "coverage-pythia.png"
N_SAMPLES = 10_000


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ks = sorted(set(log_spaced(N_SAMPLES, 25)))
    for line in COUNTS.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, values = line.split(":")
        correct = np.array(values.split(), np.int64)
        counts = Counts(np.full(correct.size, N_SAMPLES), correct)
        (points,) = axes.plot(ks, coverage(counts, ks), "o", markersize=3, label=f"Pythia {name}")
        axes.plot(ks, fit_power_law(counts).at(ks), "-", linewidth=1, color=points.get_color())
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("samples per problem")
    axes.set_ylabel("share of 128 MATH problems solved")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
