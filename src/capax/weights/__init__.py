"""One matrix: how it is encoded and where it lives."""

from capax.weights.encodings import dequantize, quantize
from capax.weights.matrix import (
    NativeWeight,
    Residency,
    Weight,
    WeightArena,
    load_weight,
    open_weights,
    pack,
    packed_nbytes,
)

__all__ = [
    "NativeWeight",
    "Residency",
    "Weight",
    "WeightArena",
    "dequantize",
    "load_weight",
    "open_weights",
    "pack",
    "packed_nbytes",
    "quantize",
]
