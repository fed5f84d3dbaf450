"""One matrix: how it is encoded and where it lives."""

from capax.weights.encodings import dequantize, quantize
from capax.weights.matrix import NativeWeight, Weight, WeightArena

__all__ = ["NativeWeight", "Weight", "WeightArena", "dequantize", "quantize"]
