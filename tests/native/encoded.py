"""Encoded matrices for kernel tests, and what a kernel must make of them, in float64."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize

Floats = np.ndarray  # float32, shape in the docstring

FLOAT_ENCODINGS = ["F32", "F16", "BF16"]
PLAIN_ENCODINGS = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_ENCODINGS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
INTEGER_ENCODINGS = PLAIN_ENCODINGS + K_ENCODINGS
ENCODINGS = FLOAT_ENCODINGS + INTEGER_ENCODINGS

# Byte offsets of the float16 scales inside a block, by encoding.
SCALES_AT = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def block_size(encoding: str) -> int:
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[encoding]][0])


def random_matrix(encoding: str, n_out: int, n_in: int, rng: np.random.Generator) -> bytes:
    """Rows of every bit pattern the encoding has, with scales of ordinary size."""
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    if encoding in FLOAT_ENCODINGS:
        values = rng.standard_normal((n_out, n_in)).astype(np.float32)
        if encoding == "F32":
            return values.tobytes()
        if encoding == "F16":
            return values.astype(np.float16).tobytes()
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = rng.integers(0, 256, (n_out * n_in // size, nbytes), dtype=np.uint8)
    for at in SCALES_AT[encoding]:
        scales = rng.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.tobytes()


def reference_rows(encoding: str, data: bytes, n_out: int, n_in: int) -> Floats:
    """[n_out, n_in] float32 as the gguf package dequantises it."""
    rows = np.frombuffer(data, dtype=np.uint8).reshape(n_out, -1)
    return gguf_dequantize(rows, GGMLQuantizationType[encoding]).reshape(n_out, n_in)


def quantised_activations(x: Floats) -> tuple[np.ndarray, np.ndarray]:
    """(q, d): int values as float64 [T, n_in / 32, 32] and float32 scales [T, n_in / 32]."""
    blocks = x.reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(axis=-1)
    with np.errstate(divide="ignore"):
        scale = np.where(amax > 2.0**-100, np.float32(127) / amax, np.float32(0))
    q = np.rint(blocks * scale[..., None].astype(np.float32))
    d = np.where(scale > 0, amax / np.float32(127), np.float32(0)).astype(np.float32)
    return q.astype(np.float64), d


def reference_matmul(w: Floats, x: Floats, integer: bool) -> np.ndarray:
    """[T, n_out] float64; with `integer`, activations quantised as the kernels do."""
    if integer:
        q, d = quantised_activations(x)
        x = (q * d[..., None].astype(np.float64)).reshape(x.shape)
    return x.astype(np.float64) @ w.astype(np.float64).T


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    """Squared error over squared size, for the whole array."""
    return float(((got - want) ** 2).sum() / max(float((want**2).sum()), 1e-300))
