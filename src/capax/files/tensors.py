"""Where a tensor lies in a file, and the two ways to get at its bytes.

`TensorReader.read` copies with `pread` (a file that shrinks meanwhile gives an error,
not a SIGBUS); `TensorReader.view` maps the file and copies nothing. Both hand out raw
encoded bytes; decoding them is the business of `capax.weights`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from capax.errors import FileFormatError
from capax.files.encodings import Encoding

Bytes = npt.NDArray[np.uint8]

_READ_CHUNK_NBYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file: `shape` is row-major, for a matrix `(n_out, n_in)`.

    `offset` is absolute in the file at `path`; `offset + nbytes` was checked against the
    file's size when the header was read.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    path: Path
    offset: int
    nbytes: int


class TensorReader:
    """Reads tensors of one or several files, keeping each file open until `close`."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}

    def fd(self, path: Path) -> int:
        """Return the read-only descriptor of `path`; it belongs to this reader."""
        fd = self._fds.get(path)
        if fd is None:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                raise FileFormatError(f"cannot open {path}: {e.strerror}") from e
            self._fds[path] = fd
        return fd

    def read(self, tensor: TensorInfo) -> Bytes:
        """Return a copy of the tensor's bytes: uint8 [nbytes]."""
        out = np.empty(tensor.nbytes, np.uint8)
        self.read_into(tensor, out)
        return out

    def read_into(self, tensor: TensorInfo, out: Bytes, start: int = 0) -> None:
        """Fill `out` (uint8, contiguous) with the tensor's bytes from byte `start` on."""
        if start < 0 or start + out.nbytes > tensor.nbytes:
            raise ValueError(f"bytes {start}..{start + out.nbytes} are outside {tensor.name!r}")
        fd = self.fd(tensor.path)
        target = out.data.cast("B")
        done = 0
        while done < len(target):
            chunk = target[done : done + _READ_CHUNK_NBYTES]
            got = os.preadv(fd, [chunk], tensor.offset + start + done)
            if got <= 0:
                raise _shrunk(tensor, os.fstat(fd).st_size)
            done += got

    def chunks(self, tensor: TensorInfo) -> Iterator[Bytes]:
        """Yield the tensor's bytes in order, at most 16 MiB at a time."""
        for start in range(0, tensor.nbytes, _READ_CHUNK_NBYTES):
            out = np.empty(min(_READ_CHUNK_NBYTES, tensor.nbytes - start), np.uint8)
            self.read_into(tensor, out, start)
            yield out

    def view(self, tensor: TensorInfo) -> Bytes:
        """Return the tensor's bytes as a read-only view of the mapped file: uint8 [nbytes].

        The view keeps the mapping alive after `close`. Should the file be truncated while
        the view is in use, touching it kills the process: the engine uses `read`.
        """
        if tensor.nbytes == 0:
            return np.empty(0, np.uint8)
        mapped = self._maps.get(tensor.path)
        if mapped is None:
            mapped = mmap.mmap(self.fd(tensor.path), 0, access=mmap.ACCESS_READ)
            self._maps[tensor.path] = mapped
        if tensor.offset + tensor.nbytes > len(mapped):
            raise _shrunk(tensor, len(mapped))
        return np.frombuffer(mapped, np.uint8, tensor.nbytes, tensor.offset)

    def close(self) -> None:
        self._maps.clear()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_float32(reader: TensorReader, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    """Read an F32, F16 or BF16 tensor as float32 of its shape (a copy)."""
    raw = reader.read(tensor)
    if tensor.encoding.name == "F32":
        values = raw.view("<f4").astype(np.float32, copy=False)
    elif tensor.encoding.name == "F16":
        values = raw.view("<f2").astype(np.float32)
    elif tensor.encoding.name == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        raise FileFormatError(
            f"{tensor.path}: tensor {tensor.name!r} is {tensor.encoding}; "
            "one of F32, F16, BF16 is needed here"
        )
    return values.reshape(tensor.shape)


def _shrunk(tensor: TensorInfo, file_nbytes: int) -> FileFormatError:
    return FileFormatError(
        f"{tensor.path}: tensor {tensor.name!r} ends at byte {tensor.offset + tensor.nbytes:,} "
        f"but the file now has {file_nbytes:,}: it was changed while in use; load the model again"
    )
