"""The tensors of one model in the form the forward pass wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from capax.errors import FileFormatError
from capax.files.model_file import ModelFile
from capax.files.tensors import TensorReader, read_float32
from capax.weights import NativeWeight, Residency, open_weights, pack

Floats = npt.NDArray[np.float32]


class ModelTensors:
    """Matrices as `NativeWeight`, everything one-dimensional as float32 arrays.

    `residency` names the matrices that stay in the file (`streamed`); the others are packed
    into memory once, here, with `n_threads` reading and packing at a time; 0 leaves that to
    `pack`, which needs nothing of the interpreter and so can run beside other work.
    """

    def __init__(
        self, model: ModelFile, residency: Mapping[str, Residency] | None = None, n_threads: int = 1
    ) -> None:
        self.output_name = "token_embd.weight" if model.config.tied_embeddings else "output.weight"
        matrices = [t for t in model.tensors.values() if len(t.shape) == 2]
        self._matrices = open_weights(matrices, residency or {})
        with TensorReader() as reader:
            self._vectors = {
                t.name: read_float32(reader, t) for t in model.tensors.values() if len(t.shape) == 1
            }
        self._path = model.path
        if n_threads:
            self.pack(n_threads)

    def pack(self, n_threads: int) -> None:
        """Read and pack the matrices, once. Raises FileFormatError if the file was changed."""
        pack(self._matrices.values(), n_threads)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory by all tensors."""
        return sum(w.nbytes for w in self._matrices.values()) + sum(
            v.nbytes for v in self._vectors.values()
        )

    def matrix(self, name: str) -> NativeWeight:
        """Return the matrix of this name. Raises FileFormatError if the model has none."""
        try:
            return self._matrices[name]
        except KeyError:
            raise FileFormatError(f"{self._path}: the matrix {name!r} is missing") from None

    def vector(self, name: str) -> Floats:
        """Return a vector as float32. Raises FileFormatError if the model has none."""
        vector = self.optional_vector(name)
        if vector is None:
            raise FileFormatError(f"{self._path}: the vector {name!r} is missing")
        return vector

    def optional_vector(self, name: str) -> Floats | None:
        """Return a vector as float32, or None if the model does not have it."""
        return self._vectors.get(name)
