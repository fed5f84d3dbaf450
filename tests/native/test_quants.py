"""Dequantise and quantise against the gguf package, bit for bit."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize

from capax import _native
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
