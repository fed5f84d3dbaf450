"""A sweep on disk: one record for each cell (encoding, text), none of them made twice.

    manifest.json, log.jsonl                   as of every run; one context, one KV cache
    samples.jsonl                              a line for each finished cell, with its figures
    records/<encoding>-<text>-<hash12>.json    a finished cell; the hash is of all that decides it
    models/<hash12>-<encoding>.gguf            encoded models; may be deleted, are made again

A cell's file appears whole or not at all, so a process may die at any moment.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from capax.errors import CapaxError, ConfigError
from capax.files.run_folder import cut_torn_line
from capax.measuring.measured_run import RECORDS, MeasuredRun
from capax.measuring.records import Record, list_records, read_record, versions, write_record


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


class Sweep(MeasuredRun):
    """A sweep opened for writing; enter it.

    `config` with the source's digest; with capax's version it decides which cells are the same.
    Raises what `RunFolder` does.
    """

    def __init__(
        self, path: Path, source_digest: str, settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(path, "sweep", {"model": f"sha256:{source_digest}", **settings}, facts)
        self._source = source_digest
        self._basis = [source_digest, dict(settings), versions()["capax"]]

    def _open(self) -> None:
        cut_torn_line(self.samples)
        (self.path / RECORDS).mkdir(exist_ok=True)
        lines = self.samples.read_bytes().splitlines() if self.samples.exists() else []
        kept = {json.loads(line)["record"] for line in lines}
        for found in list_records(self.path / RECORDS).found:
            if found.record.id not in kept:  # killed between the two
                self._append(found.record)

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
        self._append(record)

    def _append(self, record: Record) -> None:
        line = {
            "encoding": record.method.get("encoding"),
            "text": record.data.name if record.data else "",
            "record": record.id,
            "figures": {figure.name: figure.value for figure in record.figures},
        }
        with self.samples.open("ab") as stream:
            stream.write(json.dumps(line).encode() + b"\n")

    def model_path(self, encoding: str) -> Path:
        """Return where the source in an encoding lies, or will."""
        return self.path / "models" / f"{self._source[:12]}-{encoding}.gguf"

    def _cell(self, encoding: str, text: Text) -> Cell:
        content = json.dumps([*self._basis, encoding, text.digest], sort_keys=True)
        hash12 = hashlib.sha256(content.encode()).hexdigest()[:12]
        name = re.sub(r"[^A-Za-z0-9]+", "-", text.name)[:40].strip("-")
        path = self.path / RECORDS / f"{encoding}-{name}-{hash12}.json"
        try:
            record = read_record(path) if path.exists() else None
        except CapaxError:  # damaged since: measured again
            record = None
        return Cell(encoding, text, path, record)
