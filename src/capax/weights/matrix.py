"""The `Weight` interface and its native implementation.

An encoding says how numbers are written, a residency where they live, and the two are
orthogonal. `NativeWeight` covers every GGUF encoding, `packed` (in memory, 16 output rows
interleaved for the kernels) or `streamed` (read from the file at every use). Both give the
same bits, and so do one token alone and the same token in a batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from capax._native import Weight as NativeWeight
from capax._native import WeightArena, WeightReadError, pack_weights
from capax.errors import FileFormatError
from capax.files.tensors import TensorInfo
from capax.methods import Method, register

__all__ = [
    "NativeWeight",
    "Residency",
    "Weight",
    "WeightArena",
    "load_weight",
    "open_weights",
    "pack",
    "packed_nbytes",
]

Residency = Literal["packed", "streamed"]


def packed_nbytes(tensor: TensorInfo) -> int:
    """Return the bytes the packed form of a matrix takes in memory, alignment included."""
    n_out, n_in = tensor.shape
    nbytes = NativeWeight.packed_nbytes(tensor.encoding.name, n_out, n_in)
    return -(-nbytes // 64) * 64


def open_weights(
    tensors: Sequence[TensorInfo], residency: Mapping[str, Residency]
) -> dict[str, NativeWeight]:
    """Make weights of matrices in files, with room in one arena unless `residency` says otherwise.

    `pack` comes next and reads them. Raises FileFormatError as `load_weight`.
    """
    packed = [t for t in tensors if residency.get(t.name, "packed") == "packed"]
    arena = WeightArena(sum(packed_nbytes(t) for t in packed)) if packed else None
    return {
        t.name: load_weight(t, residency.get(t.name, "packed"), arena, pack=False) for t in tensors
    }


def pack(weights: Iterable[NativeWeight], n_threads: int) -> None:
    """Read and pack what `open_weights` made; leaves the interpreter's lock alone all the time.

    Raises FileFormatError if a file no longer holds the bytes its header promised.
    """
    try:
        pack_weights(list(weights), n_threads)
    except WeightReadError as error:
        raise FileFormatError(str(error)) from error


def load_weight(
    tensor: TensorInfo,
    residency: Residency = "packed",
    arena: WeightArena | None = None,
    *,
    pack: bool = True,
) -> NativeWeight:
    """Make a weight of a matrix in a file; packed forms are laid into `arena` if there is one.

    `pack=False` leaves reading and packing to `pack`. Raises FileFormatError if the file no longer
    holds the bytes its header promised.
    """
    n_out, n_in = tensor.shape
    try:
        return NativeWeight.from_file(
            str(tensor.path),
            tensor.offset,
            tensor.nbytes,
            tensor.encoding.name,
            n_out,
            n_in,
            residency,
            arena if residency == "packed" else None,
            pack,
        )
    except (WeightReadError, ValueError) as error:
        raise FileFormatError(f"{tensor.path}: tensor {tensor.name!r}: {error}") from error


@runtime_checkable
class Weight(Protocol):
    """An encoded matrix [n_out, n_in]."""

    @property
    def n_out(self) -> int:
        """Number of rows, the width of a product."""

    @property
    def n_in(self) -> int:
        """Number of columns, the width of an input."""

    @property
    def nbytes(self) -> int:
        """Resident bytes."""

    def matmul(self, x: np.ndarray, /) -> np.ndarray:
        """x: [T, n_in] float32 -> new [T, n_out] float32, x times the transpose of this matrix."""

    def rows(self, indices: np.ndarray, /) -> np.ndarray:
        """indices: [n] int32 or int64 -> new [n, n_in] float32."""

    def dequantize(self) -> np.ndarray:
        """Return a new [n_out, n_in] float32 array."""


register(Method("packed", "weights", "", "Hold matrices in memory, laid out for the kernels."))
register(
    Method("streamed", "weights", "", "Read matrices from the file at every step; the same bits.")
)
