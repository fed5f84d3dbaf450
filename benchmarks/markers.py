"""Do right answers read differently? The published solutions of GSM8K, and traces made here.

    python -m benchmarks.markers --solutions example_model_solutions.jsonl

The solutions are OpenAI's (openai/grade-school-math, MIT licence): 1,319 problems, four models.
Writes markers.json, and tests/acceptance/data/gsm8k_solutions.csv with the counts that the tests
use: per problem and model whether it is right, words, hedging, thinking and discourse words.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from capax.scaling.calibration import area_within, fit, split
from capax.scaling.markers import Traces, count_markers, marker_report

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def counts_of(path: Path) -> np.ndarray:
    """Return right, words and markers of every solution, int64 [problems, models, 5]."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([
        [
            [row[m]["is_correct"], len(text.split()), *count_markers(text)]
            for m in MODELS
            for text in [row[m]["solution"]]
        ]
        for row in rows
    ])  # fmt: skip


def traces_of(counts: np.ndarray) -> Traces:
    """Return the solutions ready to compare; the length is in words."""
    n, n_models, _ = counts.shape
    flat = counts.reshape(-1, 5)
    words = np.maximum(flat[:, 1], 1)
    features = np.column_stack([words, 1000 * flat[:, 2:] / words[:, None]])
    return Traces(
        np.repeat(np.arange(n).astype(str), n_models), features, flat[:, 0] > 0,
        np.zeros(len(flat), bool), np.tile(np.array(MODELS), n), flat[:, 2:].sum(0),
    )  # fmt: skip


def main() -> int:
    """Count, compare, keep."""
    parser = argparse.ArgumentParser(description="words of right and wrong solutions of GSM8K")
    parser.add_argument("--solutions", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--counts", type=Path, default=Path("tests/acceptance/data"))
    options = parser.parse_args()
    counts = counts_of(options.solutions)
    lines = [",".join(map(str, row)) for row in counts.reshape(len(counts), -1)]
    (options.counts / "gsm8k_solutions.csv").write_text("\n".join(lines) + "\n")
    traces = traces_of(counts)
    dev, test = split(traces)
    calibration = fit(dev)
    found = {
        "report": asdict(marker_report(traces)),
        "marks": str(calibration.marks),
        "area": asdict(area_within(calibration, test)),
    }
    (options.out / "markers.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
