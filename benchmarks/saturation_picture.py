"""Draw the three models of saturation on published Pythia counts, for docs/saturation.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.coverage_picture import COUNTS, N_SAMPLES
from capax.scaling.coverage import Counts, coverage
from capax.scaling.saturation import fit, fit_ceiling

OUT = Path(__file__).parents[1] / "docs" / "images" / "saturation-pythia.png"
MODEL = "12B"


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    rows = dict(
        line.split(":") for line in COUNTS.read_text().splitlines() if not line.startswith("#")
    )
    correct = np.array(rows[MODEL].split(), np.int64)
    counts = Counts(np.full(correct.size, N_SAMPLES), correct)
    ns = np.unique(np.rint(np.geomspace(1, N_SAMPLES, 60)).astype(int))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(ns, coverage(counts, ns.tolist()), "o", markersize=3, label="measured")
    for model in ("single", "mixture"):
        axes.plot(ns, fit(counts, model).at(ns), "-", label=model)
    for window in (32, 320, 3200):
        found = fit_ceiling(counts, window)
        axes.plot(
            ns, found.curve.at(ns), ":", label=f"F_max {found.f_max:.2f} fitted to N <= {window:,}"
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("samples per problem, N")
    axes.set_ylabel(f"share of problems solved, Pythia {MODEL}")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
