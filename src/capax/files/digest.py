"""What identifies a model: a digest of the files its weights lie in."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from capax.files.model_file import ModelFile
from capax.files.registry import file_digest

BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")  # configuration, templates, vocabularies


def weights_digest(model: ModelFile) -> bytes:
    """Return a SHA-256 over the SHA-256 of each file with weights, in the order of their names.

    Names do not count: a renamed model stays the same. Raises StoreError if a file cannot be read.
    """
    paths = sorted({tensor.path for tensor in model.tensors.values()})
    digest = hashlib.sha256()
    for path in paths:
        digest.update(bytes.fromhex(_digest_of(path)))
    return digest.digest()


def file_digests(model: ModelFile) -> dict[str, str]:
    """Return the SHA-256 of each file a model is, by its name.

    Of a directory, what says how to read the weights belongs to it as much as they do. Raises
    StoreError if a file cannot be read.
    """
    paths = {tensor.path for tensor in model.tensors.values()}
    if model.path.is_dir():
        paths |= {file for file in model.path.iterdir() if file.suffix in BESIDE_WEIGHTS}
    return {path.name: _digest_of(path) for path in sorted(paths)}


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _file_digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_digest(path: Path, _nbytes: int, _changed_ns: int) -> str:
    return file_digest(path)[0]
