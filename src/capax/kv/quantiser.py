"""A block of 128 positions of one stream of vectors as bytes: uniform codes, or plain floats.

    z = min, s = (max - min) / (2^bits - 1), both stored in f16
    q = clip(round((x - z) / s), 0, 2^bits - 1) against the stored s and z;   x^ = q s + z

over groups of `group` channels of one token, or of all the block's tokens of one channel. The
bytes are | codes, bit-packed | scales | zeros |, from `native/kv/uniform.h`: the same on every
instruction set. 16 and 32 bits keep f16 and float32 numbers without scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from capax import _native

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Axis = Literal["channel", "token"]

BLOCK_TOKENS = 128
CODE_BITS = (2, 3, 4, 8)
FLOAT_BITS = (16, 32)


@dataclass(frozen=True)
class BlockQuantiser:
    """Turns [128, n_channels] floats into `nbytes` bytes and back.

    `axis`: what a scale belongs to, a channel (over the block's tokens) or `group` channels of a
    token; None: the widest group up to 128 that divides the channels.
    """

    n_channels: int
    bits: int
    axis: Axis
    group: int | None = None

    @cached_property
    def _arguments(self) -> tuple[int, bool, int]:
        if self.axis == "channel":
            return self.bits, False, BLOCK_TOKENS
        return self.bits, True, min(self.group or widest_group(self.n_channels), self.n_channels)

    @cached_property
    def _part_nbytes(self) -> tuple[int, int]:
        if self.bits in FLOAT_BITS:
            return BLOCK_TOKENS * self.n_channels * self.bits // 8, 0
        return _native.uniform_nbytes(BLOCK_TOKENS, self.n_channels, *self._arguments)

    @property
    def code_nbytes(self) -> int:
        return self._part_nbytes[0]

    @property
    def scale_nbytes(self) -> int:
        """Bytes of scales and zeros."""
        return self._part_nbytes[1]

    @property
    def nbytes(self) -> int:
        return self.code_nbytes + self.scale_nbytes

    def encode(self, x: Floats, out: Bytes) -> None:
        """Write the codes of x, [128, n_channels], into out, uint8 [nbytes]."""
        if self.bits in FLOAT_BITS:
            out.view(self._float)[:] = as_float(x, self._float).ravel()
        else:
            _native.uniform_encode(np.ascontiguousarray(x), *self._arguments, out)

    def decode(self, codes: Bytes) -> Floats:
        """Return what codes, uint8 [nbytes], stand for: [128, n_channels]."""
        if self.bits in FLOAT_BITS:
            return codes.view(self._float).reshape(BLOCK_TOKENS, -1).astype(np.float32)
        return _native.uniform_decode(codes, BLOCK_TOKENS, self.n_channels, *self._arguments)

    @property
    def _float(self) -> npt.DTypeLike:
        return np.float16 if self.bits == 16 else np.float32


def widest_group(n_channels: int) -> int:
    """Return the largest multiple of 16 up to 128 that divides the channels, or all of them."""
    if n_channels <= 128:
        return n_channels
    return next((g for g in range(128, 0, -16) if n_channels % g == 0), 128)


def as_float(x: npt.NDArray[np.floating], dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Return x as numbers of a type; those beyond the range of f16 become its largest."""
    if np.dtype(dtype) != np.float16:
        return x.astype(dtype)
    halves: npt.NDArray[np.floating] = np.clip(x, -65504.0, 65504.0).astype(np.float16)
    return halves
