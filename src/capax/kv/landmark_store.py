"""Where the blocks of landmark attention lie: in memory, or in a file without a name.

A *record* is one block of one layer and KV head: K and V, [2, block, head_dim] float32, keys not
rotated. Landmark keys lie apart, [n_kv_heads, n_slots, head_dim] per layer, and always in memory,
so that scoring all blocks reads one matrix. Address space is taken for the longest sequence there
can be, memory (or disk) when a page is.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import Literal

import numpy as np
import numpy.typing as npt

from capax.errors import CapacityError

Floats = npt.NDArray[np.float32]
Where = Literal["ram", "mmap"]


class BlockRegion:
    """Room for `n_slots` blocks of `n_layers` layers, backed page by page.

    `where` "mmap": records are mapped from a file in the folder for temporary files, which is
    unlinked at once: nothing of it outlives the process.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        block: int,
        head_dim: int,
        where: Where,
    ) -> None:
        self._shape = n_layers, n_slots, n_kv_heads, 2, block, head_dim
        self._slot_nbytes = 4 * n_kv_heads * 2 * block * head_dim
        self._fd: int | None = None
        nbytes = max(n_layers * n_slots * self._slot_nbytes, 1)
        if where == "mmap":
            self._fd = _unnamed_file(nbytes)
            self._close_fd = weakref.finalize(self, os.close, self._fd)
            self._map = mmap.mmap(self._fd, nbytes)
        else:
            self._map = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._index = mmap.mmap(
            -1,
            max(4 * n_layers * n_kv_heads * n_slots * head_dim, 1),
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        )
        # [n_layers, n_slots, n_kv_heads, 2, block, head_dim]
        self.records = np.ndarray(self._shape, np.float32, self._map)
        # [n_layers, n_kv_heads, n_slots, head_dim]
        self.landmarks = np.ndarray(
            (n_layers, n_kv_heads, n_slots, head_dim), np.float32, self._index
        )

    def back(self, begin: int, end: int) -> None:
        """Make sure that slots `begin` .. `end` - 1 can be written.

        Raises CapacityError if the disk is full: a mapped page without room would kill the
        process when it is written.
        """
        if self._fd is None or end <= begin:
            return
        n_layers, n_slots = self._shape[:2]
        for layer in range(n_layers):
            at = (layer * n_slots + begin) * self._slot_nbytes
            try:
                os.posix_fallocate(self._fd, at, (end - begin) * self._slot_nbytes)
            except OSError as error:
                raise CapacityError(
                    f"there is no room on disk for {end - begin} more blocks of context: {error}; "
                    "free some, or set TMPDIR to another file system"
                ) from error

    def write(self, layer: int, slot: int, k: Floats, v: Floats, landmark: Floats) -> None:
        """Store one block: k (not rotated), v [n_kv_heads, block, head_dim], and its landmark."""
        self.records[layer, slot, :, 0], self.records[layer, slot, :, 1] = k, v
        self.landmarks[layer, :, slot] = landmark

    def read(self, layer: int, slots: npt.NDArray[np.intp], heads: npt.NDArray[np.intp]) -> Floats:
        """Return the records of pairs (slot, KV head): [n, 2, block, head_dim], a copy."""
        found: Floats = self.records[layer, slots, heads]
        return found

    def drop_mapped(self) -> None:
        """Let go of pages of the file that were read; they are read again when they are wanted."""
        if self._fd is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def release(self, begin: int, end: int) -> None:
        """Give the memory of slots `begin` .. `end` - 1 back, as far as whole system pages do."""
        if self._fd is not None or end <= begin:
            return
        n_layers, n_slots = self._shape[:2]
        for layer in range(n_layers):
            at = (layer * n_slots + begin) * self._slot_nbytes
            first = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (at + (end - begin) * self._slot_nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Give everything back: maps end with the last array on them."""
        del self.records, self.landmarks, self._map, self._index
        if self._fd is not None:
            self._close_fd()


def _unnamed_file(nbytes: int) -> int:
    """Return a descriptor of a new empty file, `nbytes` long, that has no name any more."""
    try:
        fd, path = tempfile.mkstemp(prefix="capax-blocks-")  # readable by its owner alone
        os.unlink(path)
        os.ftruncate(fd, nbytes)
    except OSError as error:
        raise CapacityError(
            f"the file for off-loaded context cannot be made: {error}; "
            "set TMPDIR to a folder that can be written"
        ) from error
    return fd
