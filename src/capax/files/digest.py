"""What identifies a model: a digest of the files its weights lie in."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from capax.files.model_file import ModelFile
from capax.files.registry import file_digest


def weights_digest(model: ModelFile) -> bytes:
    """Return a SHA-256 over the SHA-256 of each file with weights, in the order of their names.

    Names do not count: a renamed model stays the same. Raises StoreError if a file cannot be read.
    """
    paths = sorted({tensor.path for tensor in model.tensors.values()})
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(bytes.fromhex(_file_digest(path, stat.st_size, stat.st_mtime_ns)))
    return digest.digest()


@lru_cache(maxsize=64)
def _file_digest(path: Path, _nbytes: int, _changed_ns: int) -> str:
    return file_digest(path)[0]
