"""Every encoding's matrix product: against float64, against itself, on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax import _native
from tests.native.encoded import (
    ENCODINGS,
    FLOAT_ENCODINGS,
    INTEGER_ENCODINGS,
    SCALES_AT,
    block_size,
    nmse,
    quantised_activations,
    random_matrix,
    reference_matmul,
    reference_rows,
)

# Squared relative error of the float accumulation alone; measured 3e-14 to 2e-13.
SAME_ACTIVATIONS_NMSE = 1e-6
# With the rounding of activations to int8 against float activations; measured 2e-5 to 9e-5.
FLOAT_ACTIVATIONS_NMSE = 5e-4


def make(encoding: str, n_out: int, n_in: int, seed: int = 0) -> tuple[_native.Weight, np.ndarray]:
    """A weight and its float32 rows."""
    data = random_matrix(encoding, n_out, n_in, np.random.default_rng(seed))
    weight = _native.Weight.from_bytes(data, encoding, n_out, n_in)
    return weight, reference_rows(encoding, data, n_out, n_in)


def activations(n_tokens: int, n_in: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_tokens, n_in)).astype(np.float32)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_matmul_agrees_with_float64(encoding: str, isa: str) -> None:
    weight, rows = make(encoding, 70, 512)
    x = activations(37, 512)
    y = weight.matmul(x).astype(np.float64)
    integer = encoding in INTEGER_ENCODINGS
    assert nmse(y, reference_matmul(rows, x, integer)) <= SAME_ACTIVATIONS_NMSE
    assert nmse(y, reference_matmul(rows, x, False)) <= FLOAT_ACTIVATIONS_NMSE


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=25, deadline=None)
@given(
    n_out=st.integers(1, 70),
    n_tokens=st.integers(1, 40),
    n_blocks=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_every_isa_gives_the_bits_of_scalar(
    encoding: str, n_out: int, n_tokens: int, n_blocks: int, seed: int
) -> None:
    n_in = n_blocks * block_size(encoding)
    weight, rows = make(encoding, n_out, n_in, seed)
    x = activations(n_tokens, n_in, seed + 1)
    before = _native.isa()
    try:
        results = {}
        for name, _ in _native.supported_isas():
            _native.select_isa(name)
            results[name] = weight.matmul(x)
    finally:
        _native.select_isa(before)
    for name, y in results.items():
        assert y.tobytes() == results["scalar"].tobytes(), name
    want = reference_matmul(rows, x, encoding in INTEGER_ENCODINGS)
    scale = np.abs(rows).astype(np.float64).max() * np.abs(x).max() * n_in
    assert np.abs(results["scalar"] - want).max() <= 1e-6 * scale


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("n_tokens", [2, 3, 5, 8, 15, 16, 17, 37, 600])
def test_a_token_has_the_same_bits_alone_and_in_a_batch(
    encoding: str, n_tokens: int, isa: str
) -> None:
    if n_tokens == 600 and isa == "scalar":
        n_tokens = 100
    weight, _ = make(encoding, 35, 256)
    x = activations(n_tokens, 256)
    together = weight.matmul(x)
    for t in range(0, n_tokens, max(1, n_tokens // 12)):
        assert weight.matmul(x[t : t + 1]).tobytes() == together[t : t + 1].tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_groups_apart_have_the_same_bits(encoding: str, isa: str) -> None:
    weight, _ = make(encoding, 103, 256)
    x = activations(5, 256)
    whole = weight.matmul(x)
    parts = np.full_like(whole, np.nan)
    for begin, end in [(3, 7), (0, 1), (1, 3)]:
        weight.matmul_groups(x, parts, begin, end)
    assert parts.tobytes() == whole.tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_accumulate_adds_the_product_once(encoding: str, isa: str) -> None:
    weight, _ = make(encoding, 41, 256)
    x = activations(19, 256)
    y = activations(19, 41, seed=9)
    want = y + weight.matmul(x)
    weight.matmul_groups(x, y, 0, weight.n_groups, accumulate=True)
    assert y.tobytes() == want.tobytes()


def emulate_q4_1(data: bytes, n_out: int, x: np.ndarray, blocks: range) -> np.ndarray:
    """The rounding contract for one token in numpy, over blocks in the given order.

    A fused multiply-add of float32 is a float64 product and sum rounded once: the product
    of two float32 is exact in float64, and the double rounding of the sum is checked by the
    test itself (it compares with the kernel's bits).
    """
    raw = np.frombuffer(data, dtype=np.uint8).reshape(n_out, -1, 20)
    d = raw[:, :, 0:2].copy().view(np.float16)[..., 0].astype(np.float32)
    m = raw[:, :, 2:4].copy().view(np.float16)[..., 0].astype(np.float32)
    q = np.concatenate([raw[:, :, 4:] & 15, raw[:, :, 4:] >> 4], axis=-1).astype(np.float64)
    xq, xd = quantised_activations(x)
    acc = np.zeros(n_out, dtype=np.float32)
    for b in blocks:
        dot = (q[:, b] @ xq[0, b]).astype(np.float64)
        scale = (d[:, b] * xd[0, b]).astype(np.float64)
        acc = (dot * scale + acc).astype(np.float32)
        s = np.float32(xd[0, b] * np.float32(xq[0, b].sum()))
        acc = (m[:, b].astype(np.float64) * np.float64(s) + acc).astype(np.float32)
    return acc


def test_blocks_are_added_in_order_and_another_order_is_seen(isa: str) -> None:
    n_out, n_in = 64, 1536
    data = random_matrix("Q4_1", n_out, n_in, np.random.default_rng(5))
    x = activations(1, n_in)
    y = _native.Weight.from_bytes(data, "Q4_1", n_out, n_in).matmul(x)
    n_blocks = n_in // 32
    assert y[0].tobytes() == emulate_q4_1(data, n_out, x, range(n_blocks)).tobytes()
    backwards = emulate_q4_1(data, n_out, x, range(n_blocks - 1, -1, -1))
    assert y[0].tobytes() != backwards.tobytes()
    np.testing.assert_allclose(y[0], backwards, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_non_finite_activation_reaches_every_output_of_its_token_only(
    encoding: str, bad: float, isa: str
) -> None:
    weight, _ = make(encoding, 33, 256)
    x = activations(18, 256)
    clean = weight.matmul(x)
    x[7, 100] = bad
    y = weight.matmul(x)
    assert not np.isfinite(y[7]).any()
    others = np.arange(18) != 7
    assert y[others].tobytes() == clean[others].tobytes()


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
def test_a_non_finite_scale_reaches_its_row_only(encoding: str, isa: str) -> None:
    data = bytearray(random_matrix(encoding, 20, 256, np.random.default_rng(0)))
    row_nbytes = len(data) // 20
    at = 3 * row_nbytes + SCALES_AT[encoding][0]
    data[at : at + 2] = np.float16(np.nan).tobytes()
    y = _native.Weight.from_bytes(data, encoding, 20, 256).matmul(activations(2, 256))
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(y, 3, axis=1)).all()


@pytest.mark.parametrize("encoding", INTEGER_ENCODINGS)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-30, 1e33])
def test_extreme_activations_stay_close(encoding: str, size: float, isa: str) -> None:
    weight, rows = make(encoding, 16, 256)
    x = np.full((1, 256), size, dtype=np.float32)
    x[0, ::2] *= -0.5
    y = weight.matmul(x).astype(np.float64)
    want = reference_matmul(rows, x, False)
    bound = 0.01 * (np.abs(rows).astype(np.float64) @ np.abs(x[0]).astype(np.float64)) + 1e-27
    assert (np.abs(y - want) <= bound).all()


def test_extreme_quants_do_not_saturate(isa: str) -> None:
    """All weights at -128 (or 127) against all activations at +-127: the largest sums there are."""
    for quant in (-128, 127):
        block = np.float16(1.0).tobytes() + np.full(32, quant, dtype=np.int8).tobytes()
        weight = _native.Weight.from_bytes(block * 8 * 16, "Q8_0", 16, 256)
        for sign in (1.0, -1.0):
            x = np.full((1, 256), 127.0 * sign, dtype=np.float32)
            assert (weight.matmul(x) == quant * 127.0 * sign * 256).all()


@pytest.mark.parametrize("encoding", FLOAT_ENCODINGS)
@pytest.mark.parametrize("n_in", [1, 3, 31, 33, 100])
def test_float_encodings_take_any_number_of_inputs(encoding: str, n_in: int, isa: str) -> None:
    weight, rows = make(encoding, 17, n_in)
    x = activations(9, n_in)
    np.testing.assert_allclose(weight.matmul(x), reference_matmul(rows, x, False), atol=1e-5)
