"""Finished parts of a long measurement on disk: what is there is never measured again.

A file of JSON lines: a header with the settings that decide the results, unless they stand in the
manifest of a run, then one line per cell, appended and synced when the cell is done. A last line
that was not finished is cut off.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from capax.errors import ConfigError, StoreError

FORMAT = "capax-cells-1"
Key = tuple[str, str, int]  # what was measured, of which method, at which chunk, depth or prompt
Value = dict[str, Any]


class Cell(msgspec.Struct, frozen=True):
    """One finished part."""

    kind: str
    method: str
    index: int
    value: Value


class Cells:
    """Cells by key, each written as it is added; without a file they are kept in memory only."""

    def __init__(self, file: int | None = None) -> None:
        self._file = file
        self._values: dict[Key, Value] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> Value:
        return self._values[key]

    def add(self, values: Mapping[Key, Value]) -> None:
        """Keep several cells; after a kill all of them are there or none, or the first few."""
        self._values.update(values)
        if self._file is not None and values:
            lines = [msgspec.json.encode(Cell(*key, value)) for key, value in values.items()]
            _write(self._file, b"".join(line + b"\n" for line in lines))


@contextmanager
def opened(path: Path, settings: Mapping[str, Any] | None) -> Iterator[Cells]:
    """Create a file of cells, or go on with one of the same settings; None: it has no header.

    Raises ConfigError for a file of other settings or none of ours, StoreError if it cannot be
    written or another process writes it.
    """
    header = None if settings is None else json.loads(json.dumps({"format": FORMAT, **settings}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        cells = Cells(file)
        raw = path.read_bytes()
        n_whole = raw.rfind(b"\n") + 1
        os.ftruncate(file, n_whole)
        if n_whole:
            cells._values |= _read(path, raw[:n_whole].splitlines(), header)
        elif header is not None:
            _write(file, msgspec.json.encode(header) + b"\n")
        yield cells
    except BlockingIOError:
        raise StoreError(f"{path} is being written by another process") from None
    finally:
        os.close(file)


def _read(path: Path, lines: list[bytes], header: Mapping[str, Any] | None) -> dict[Key, Value]:
    try:
        if header is not None:
            _check(path, lines.pop(0), header)
        cells = [msgspec.json.decode(line, type=Cell) for line in lines]
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ConfigError(f"{path} is damaged ({e}); give another directory") from None
    return {(c.kind, c.method, c.index): c.value for c in cells}


def _check(path: Path, line: bytes, header: Mapping[str, Any]) -> None:
    found = msgspec.json.decode(line, type=dict[str, Any])
    if found.get("format") != FORMAT:
        raise ConfigError(f"{path} is no file of measured cells; give another directory")
    different = sorted(k for k in {*found, *header} if found.get(k) != header.get(k))
    if different:
        raise ConfigError(
            f"{path} was begun with another {', '.join(different)}; give another directory, "
            "or the settings it was begun with"
        )


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError as e:
        raise StoreError(f"measured cells cannot be written: {e.strerror}") from None
