"""Published counts of correct answers: seven models, 128 problems, 10,000 samples of each."""

from functools import cache
from pathlib import Path

import numpy as np

from capax.scaling.coverage import Counts

N_SAMPLES = 10_000


@cache
def pythia_counts() -> dict[str, Counts]:
    text = (Path(__file__).parent / "data" / "pythia_math_correct.txt").read_text()
    rows = [line.split(":") for line in text.splitlines() if not line.startswith("#")]
    return {
        name: Counts(np.full(128, N_SAMPLES), np.array(values.split(), np.int64))
        for name, values in rows
    }
