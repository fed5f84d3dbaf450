"""Integer frequencies of a vocabulary: exact parts of 2^30 that follow the probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import _native

TOTAL = 1 << _native.FREQUENCY_BITS


def logits_of(n: int, seed: int, scale: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * scale).astype(np.float32)


def all_intervals(logits: np.ndarray) -> np.ndarray:
    rows = np.repeat(logits[None], len(logits), 0)
    return _native.intervals_of(rows, np.arange(len(logits), dtype=np.int32)).astype(np.int64)


@given(st.integers(1, 70), st.integers(0, 2**32), st.sampled_from([0.0, 1.0, 8.0, 200.0]))
def test_intervals_cover_everything_and_follow_the_probabilities(
    n: int, seed: int, scale: float
) -> None:
    logits = logits_of(n, seed, scale)
    low, width = all_intervals(logits).T
    assert low[0] == 0
    assert np.array_equal(low[1:], np.cumsum(width)[:-1])
    assert width.sum() == TOTAL
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    assert np.all(width >= np.floor(p * (TOTAL - n) * (1 - 1e-6)))
    assert np.all(width >= 1)
    others = np.arange(n) != np.argmax(logits)
    assert np.all(width[others] <= 1 + np.ceil(p[others] * TOTAL * (1 + 1e-6)))


@given(st.integers(1, 70), st.integers(0, 2**32), st.integers(0, TOTAL - 1))
def test_find_returns_the_interval_around_the_target(n: int, seed: int, target: int) -> None:
    logits = logits_of(n, seed, 3.0)
    symbol, low, width = _native.find_symbol(logits, target)
    assert low <= target < low + width
    assert [low, width] == all_intervals(logits)[symbol].tolist()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 49_152])
def test_every_instruction_set_gives_the_same_intervals(n: int) -> None:
    logits = np.stack([logits_of(n, seed, 5.0) for seed in range(4)])
    symbols = np.array([0, n // 3, n // 2, n - 1], np.int32)
    chosen = _native.isa()
    found = []
    try:
        for isa, _ in _native.supported_isas():
            assert _native.select_isa(isa)
            found.append(_native.intervals_of(logits, symbols))
    finally:
        _native.select_isa(chosen)
    assert all(np.array_equal(found[0], other) for other in found[1:])


def test_what_is_left_over_goes_to_the_first_of_the_most_likely() -> None:
    width = all_intervals(np.array([1.0, 2.0, 2.0], np.float32))[:, 1]
    assert width[1] > width[2] > width[0]
    assert width[1] - width[2] <= 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = np.zeros(5, np.float32)
    logits[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        _native.find_symbol(logits, 0)
    with pytest.raises(ValueError, match="not finite"):
        _native.intervals_of(logits[None], np.zeros(1, np.int32))


def test_wrong_shapes_and_values_are_refused() -> None:
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="outside the vocabulary of 5"):
        _native.intervals_of(logits, np.array([0, 5], np.int32))
    with pytest.raises(ValueError, match=r"symbols must be \[rows\]"):
        _native.intervals_of(logits, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="below 2"):
        _native.find_symbol(logits[0], TOTAL)
