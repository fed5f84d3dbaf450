"""Rotary position embedding (Su et al., 2021, arXiv 2104.09864) as tables of cos and sin.

Pair i of a head turns by position * frequency_i, frequency_i = base^(-2i/dim). The ways to
stretch a model beyond its trained context only change the frequencies:

linear  every frequency divided by `factor` (Chen et al., 2023, arXiv 2306.15595);
llama3  long wavelengths divided by `factor`, short ones kept, a linear blend in between
        (Grattafiori et al., 2024, arXiv 2407.21783);
yarn    the same idea per pair by how often it turns within the original context, plus a
        factor on cos and sin (Peng et al., 2023, arXiv 2309.00071).

Angles are computed in float64 and rounded once, so position 131,071 is as exact as 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from capax.files.config import ModelConfig, RopeConfig, RopeStyle

Floats = npt.NDArray[np.float32]


class RotaryTables(NamedTuple):
    """`cos`, `sin`: float32 [n_positions, dim / 2]; `style`: which numbers form a pair."""

    cos: Floats
    sin: Floats
    style: RopeStyle


def rotary_tables(config: ModelConfig, n_positions: int) -> RotaryTables:
    """Return the tables for positions 0 .. n_positions - 1.

    A model without rotation gets the angle 0 everywhere, which changes no number.
    """
    rope = config.rope
    if rope is None:
        shape = n_positions, config.head_dim // 2
        return RotaryTables(np.ones(shape, np.float32), np.zeros(shape, np.float32), "half")
    angles = np.outer(np.arange(n_positions, dtype=np.float64), frequencies(rope))
    factor = rope.attention_factor
    return RotaryTables(
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
        rope.style,
    )


def frequencies(rope: RopeConfig) -> npt.NDArray[np.float64]:
    """Return the angle per position of each pair: float64 [dim / 2]."""
    plain = rope.base ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if rope.scaling == "linear":
        scaled = plain / rope.factor
    elif rope.scaling == "llama3":
        scaled = _llama3(plain, rope)
    elif rope.scaling == "yarn":
        scaled = _yarn(plain, rope)
    else:
        scaled = plain
    if rope.freq_factors is not None:
        scaled = scaled / np.asarray(rope.freq_factors, np.float64)
    return scaled


def _llama3(plain: npt.NDArray[np.float64], rope: RopeConfig) -> npt.NDArray[np.float64]:
    assert rope.original_context_len is not None  # RopeConfig checked it
    turns = rope.original_context_len * plain / (2 * math.pi)  # within the original context
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return keep * plain + (1 - keep) * plain / rope.factor


def _yarn(plain: npt.NDArray[np.float64], rope: RopeConfig) -> npt.NDArray[np.float64]:
    assert rope.original_context_len is not None

    def pair_turning(n_turns: float) -> float:
        """The (fractional) pair that turns `n_turns` times within the original context."""
        wavelength = rope.original_context_len / (n_turns * 2 * math.pi)  # type: ignore[operator]  # asserted above
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.base))

    low = max(math.floor(pair_turning(rope.beta_fast)), 0)
    high = min(math.ceil(pair_turning(rope.beta_slow)), rope.dim - 1)
    width = high - low if high != low else 0.001
    interpolated = np.clip((np.arange(rope.dim // 2) - low) / width, 0.0, 1.0)
    return plain * (1 - interpolated) + plain / rope.factor * interpolated
