"""A sweep on disk: one record for each cell (encoding, text), none of them made twice.

    records/<encoding>-<text>-<hash12>.json    a finished cell; the hash is of all that decides it
    models/<hash12>-<encoding>.gguf            encoded models; may be deleted, are made again
    sweep.lock                                 held by the one process that writes

A cell's file appears whole or not at all, so a process may die at any moment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from capax.errors import CapaxError, ConfigError, StoreError
from capax.measuring.records import Record, read_record, versions, write_record


class Text(NamedTuple):
    """A text to score; `digest`: SHA-256 of it in UTF-8."""

    name: str
    content: str
    digest: str

    @classmethod
    def of(cls, name: str, content: str) -> Self:
        return cls(name, content, hashlib.sha256(content.encode()).hexdigest())


class Cell(NamedTuple):
    """One measurement of a sweep; `record` is None until it is finished."""

    encoding: str
    text: Text
    path: Path
    record: Record | None


class Sweep:
    """A sweep opened for writing; enter it.

    `settings` with the source's digest and capax's version decide which cells are the same.
    Raises StoreError if another process writes it or it cannot be written.
    """

    def __init__(self, path: Path, source_digest: str, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._source = source_digest
        self._basis = [source_digest, dict(settings), versions()["capax"]]
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            (self.path / "records").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "sweep.lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(f"{self.path} is being written by another process") from None
        except OSError as e:
            raise StoreError(f"{self.path} cannot be written: {e.strerror}") from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def cells(self, encodings: Sequence[str], texts: Sequence[Text]) -> list[Cell]:
        """Return all cells, encoding by encoding, with the records that are there.

        Raises ConfigError if two texts have one name: their rows could not be told apart.
        """
        names = [text.name for text in texts]
        if len(set(names)) < len(names):
            raise ConfigError(f"two texts have one name among {', '.join(names)}; rename one")
        return [self._cell(encoding, text) for encoding in encodings for text in texts]

    def keep(self, cell: Cell, record: Record) -> None:
        """Write a finished cell."""
        write_record(cell.path.parent, record, cell.path.name)

    def model_path(self, encoding: str) -> Path:
        """Return where the source in an encoding lies, or will."""
        return self.path / "models" / f"{self._source[:12]}-{encoding}.gguf"

    def _cell(self, encoding: str, text: Text) -> Cell:
        content = json.dumps([*self._basis, encoding, text.digest], sort_keys=True)
        hash12 = hashlib.sha256(content.encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9]+", "-", text.name)[:40].strip("-")
        path = self.path / "records" / f"{encoding}-{name}-{hash12}.json"
        try:
            record = read_record(path) if path.exists() else None
        except CapaxError:  # damaged since: measured again
            record = None
        return Cell(encoding, text, path, record)
