"""Encoded rows to float32 and back, bit-equal to the `gguf` package where it has a reference.

Names are GGUF's: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.
Block sizes and bytes per block have their one Python home in `capax.files.encodings`.
"""

import numpy as np

from capax import _native
from capax.errors import ConfigError


def dequantize(
    encoding: str, data: bytes | bytearray | memoryview | np.ndarray, n_elements: int
) -> np.ndarray:
    """Return the `n_elements` weights in `data` as a new float32 array of one dimension.

    data: contiguous bytes-like object of exactly the blocks that hold `n_elements` weights.
    Raises ConfigError for an unknown encoding and for sizes that disagree.
    """
    try:
        return _native.dequantize(encoding, data, n_elements)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def quantize(encoding: str, weights: np.ndarray) -> bytes:
    """Return `weights` (float32 [n_out, n_in]) in `encoding`, as the rows of a GGUF file.

    F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 follow the `gguf` package bit for bit;
    Q4_K and Q6_K search for the scales of least squared error. Raises ConfigError for an
    encoding that cannot be written, for rows that are not whole blocks, and for weights that
    are not finite.
    """
    try:
        return _native.quantize(encoding, weights)
    except ValueError as error:
        raise ConfigError(str(error)) from error
