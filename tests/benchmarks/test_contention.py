"""The contention experiment's arithmetic and picture, on times made up from a known truth."""

import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contention import CONDITIONS, OUTPUTS, PROMPTS, draw, judged
from capax.measuring.idealized_runtime import Sample, cells, fit


def times(mean_excess: float, seed: int) -> list[Sample]:
    """Twelve repeats of each cell; a quarter of the queries meet no load at all."""
    rng = np.random.default_rng(seed)
    samples = []
    for p, o in product(PROMPTS, OUTPUTS):
        for _ in range(12):
            excess = rng.exponential(mean_excess) if rng.random() < 0.75 and mean_excess else 0.0
            seconds = (0.002 * p / 16 + 0.01 * o) * (1 + excess) * (1 + 0.01 * rng.random())
            samples.append(Sample(p, o, seconds))
    return samples


def test_load_in_bursts_is_removed_and_the_mean_shows_it() -> None:
    quiet = fit(cells(times(0.0, 1)))
    loaded = judged(times(1.0, 2), quiet)
    assert loaded["mean_ratio"] > 1.4
    assert abs(loaded["denoised_ratio"] - 1) < 0.1
    assert loaded["denoised_error"] < 0.1


def test_the_picture(tmp_path: Path) -> None:
    found: dict[str, Any] = {
        name: {"samples": [[*s[:3]] for s in times(excess, 3)]}
        for name, excess in zip(CONDITIONS, (0.0, 1.0, 3.0), strict=True)
    }
    draw(found, tmp_path / "p.png")
    assert struct.unpack(">II", (tmp_path / "p.png").read_bytes()[16:24]) > (600, 300)
