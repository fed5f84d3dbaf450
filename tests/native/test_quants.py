"""Dequantise and quantise against the gguf package, bit for bit."""

from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize

from capax import _native
from capax.errors import ConfigError
from capax.weights import dequantize, quantize
from tests.native.encoded import ENCODINGS, block_size, random_matrix, reference_rows

REFERENCE_QUANTISERS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dequantise_equals_gguf(encoding: str) -> None:
    n = 64 * block_size(encoding) * 4
    data = random_matrix(encoding, 4, n // 4, np.random.default_rng(0))
    want = reference_rows(encoding, data, 4, n // 4).ravel()
    assert _native.dequantize(encoding, data, n).tobytes() == want.tobytes()


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS if e != "F32"])
def test_dequantise_equals_gguf_for_arbitrary_bytes(encoding: str) -> None:
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    data = np.random.default_rng(1).integers(0, 256, 500 * nbytes, dtype=np.uint8).tobytes()
    got = _native.dequantize(encoding, data, 500 * size)
    with np.errstate(invalid="ignore"):
        want = reference_rows(encoding, data, 500, size).ravel()
    assert np.array_equal(np.isnan(got), np.isnan(want))
    known = ~np.isnan(want)
    assert got[known].tobytes() == want[known].tobytes()


@pytest.mark.parametrize("encoding", REFERENCE_QUANTISERS)
def test_quantise_equals_gguf(encoding: str) -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((40, 256)).astype(np.float32)
    weights[3] = 0.0
    weights[4] *= 1e-6
    weights[5] = 1.25
    weights[6, ::2] = -weights[6, 1::2]  # ties in magnitude
    weights[7] = np.round(weights[7] * 8)
    want = gguf_quantize(weights, GGMLQuantizationType[encoding]).tobytes()
    assert _native.quantize(encoding, weights) == want


def naive_affine(weights: np.ndarray) -> np.ndarray:
    """Q4_K without a search: sub-block range to scale and minimum, each rounded to 6 bits."""
    blocks = weights.reshape(-1, 8, 32).astype(np.float64)
    low = np.minimum(blocks.min(-1), 0)
    scale = (blocks.max(-1) - low) / 15
    d = (scale.max(-1, keepdims=True) / 63).astype(np.float16).astype(np.float64)
    m = (-low.min(-1, keepdims=True) / 63).astype(np.float16).astype(np.float64)
    scale = (np.rint(scale / d) * d)[..., None]
    low = (np.rint(-low / m) * m)[..., None]
    q = np.clip(np.rint((blocks + low) / scale), 0, 15)
    return (q * scale - low).reshape(weights.shape)


def naive_symmetric(weights: np.ndarray) -> np.ndarray:
    """Q6_K without a search: the extreme of 16 weights on -32, scales rounded to 8 bits."""
    blocks = weights.reshape(-1, 16, 16).astype(np.float64)
    at = np.abs(blocks).argmax(-1)[..., None]
    scale = np.take_along_axis(blocks, at, -1)[..., 0] / -32
    most = np.abs(scale).argmax(-1)[..., None]
    d = np.take_along_axis(scale, most, -1) / -128
    d = d.astype(np.float16).astype(np.float64)
    scale = (np.clip(np.rint(scale / d), -128, 127) * d)[..., None]
    q = np.clip(np.rint(blocks / scale), -32, 31)
    return (q * scale).reshape(weights.shape)


# Squared relative error on normal weights as measured when written: 4.9e-3 and 3.0e-4.
@pytest.mark.parametrize(
    ("encoding", "naive", "bound"),
    [("Q4_K", naive_affine, 5.1e-3), ("Q6_K", naive_symmetric, 3.1e-4)],
)
def test_search_beats_naive_rounding(
    encoding: str, naive: Callable[[np.ndarray], np.ndarray], bound: float
) -> None:
    weights = np.random.default_rng(3).standard_normal((64, 512)).astype(np.float32)
    data = _native.quantize(encoding, weights)
    got = reference_rows(encoding, data, 64, 512).astype(np.float64)
    size = (weights.astype(np.float64) ** 2).sum()
    error = ((got - weights) ** 2).sum() / size
    assert error <= bound
    assert error <= 0.85 * ((naive(weights) - weights) ** 2).sum() / size
    blocks = ((got - weights) ** 2).reshape(-1, 32).sum(-1)
    assert blocks.max() <= 8 * blocks.mean()  # no block pays for the others


@pytest.mark.parametrize("encoding", ["Q4_K", "Q6_K"])
def test_special_rows_survive(encoding: str) -> None:
    rows = np.zeros((6, 256), dtype=np.float32)
    rows[1] = 0.75
    rows[2] = -0.75
    rows[3, 17] = 1.0
    rows[4] = np.linspace(0, 1, 256)
    rows[5] = np.linspace(-1, -0.5, 256)
    data = _native.quantize(encoding, rows)
    got = reference_rows(encoding, data, 6, 256)
    assert (got[0] == 0).all()
    assert np.abs(got - rows).max() <= 0.05


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = np.zeros((3, 64), np.float32)
    weights[1, 40] = np.inf
    with pytest.raises(ValueError, match=r"weight \[1, 40\] is not finite"):
        _native.quantize("Q8_0", weights)
    with pytest.raises(ValueError, match="'Q2_K' can be read but not written"):
        _native.quantize("Q2_K", np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_K"])
def test_room_functions_agree_and_raise_config_errors(encoding: str) -> None:
    weights = np.random.default_rng(4).standard_normal((2, 256)).astype(np.float32)
    data = quantize(encoding, weights)
    want = reference_rows(encoding, data, 2, 256).ravel()
    assert dequantize(encoding, data, 512).tobytes() == want.tobytes()
    with pytest.raises(ConfigError, match="take"):
        dequantize(encoding, data[:-1], 512)
    with pytest.raises(ConfigError, match="not whole blocks"):
        quantize(encoding, weights[:, :31].copy())


def test_hostile_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole blocks of 32"):
        _native.dequantize("Q4_1", bytes(20), 31)
    with pytest.raises(ValueError, match="take 20 bytes, not 19"):
        _native.dequantize("Q4_1", bytes(19), 32)
    with pytest.raises(ValueError, match="not whole blocks"):
        _native.dequantize("Q4_1", bytes(20), -32)
    with pytest.raises(ValueError, match="is not one of"):
        _native.dequantize("Q7_7", bytes(20), 32)
    with pytest.raises(ValueError, match="not whole blocks of 32"):
        _native.quantize("Q4_1", np.zeros((1, 33), np.float32))
