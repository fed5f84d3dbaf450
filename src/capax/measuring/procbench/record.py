"""One answered problem as a line of JSON, and the file of them that a run grows and resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import msgspec

from capax.errors import ConfigError, StoreError

FORMAT = "capax-procbench-1"


@dataclass(frozen=True, slots=True)
class Record:
    """What a model answered to one problem, and what that is worth.

    `is_cut`: the answer, or every one of several, stopped at the limit of tokens. `further_texts`:
    those behind the first, where states were voted. `reference_tokens`: what the true answer
    takes as compact JSON, None if the endpoint's tokenizer is not at hand. Nothing here depends
    on time, so equal answers give equal files.
    """

    task: str
    example: str
    steps: int
    digest: str
    text: str
    is_cut: bool
    is_read: bool
    intermediate: list[Any]
    final: Any
    pml: int
    n_states: int
    pa: float
    sm: bool
    fm: bool
    prompt_tokens: int
    completion_tokens: int
    reference_tokens: int | None
    further_texts: list[str] = field(default_factory=list)


class RecordFile:
    """A header that names the run, then one record per line, each on disk before the next."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def append(self, record: Record) -> None:
        line = asdict(record)
        if not record.further_texts:
            del line["further_texts"]
        self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def load(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Read a run's header and records; a last line that is not whole is left out.

    Raises ConfigError for a file that is none of a run.
    """
    return _header_and_records(path, path.read_bytes())[:2]


def load_answers(path: Path) -> list[Record]:
    """Read the records of a run directory, whose file has no header.

    Raises StoreError if there is none, ConfigError if it is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}") from None
    return _records(path, raw)[0]


def lm_eval_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return records as lm-evaluation-harness logs samples, one dict per problem."""
    return [
        {
            "doc_id": number,
            "doc": {"task": r.task, "example": r.example, "steps": r.steps, "digest": r.digest},
            "target": "",
            "arguments": {},
            "resps": [[r.text, *r.further_texts]],
            "filtered_resps": [{"intermediate": r.intermediate, "final": r.final}],
            "filter": "none",
            "metrics": ["pa", "sm", "fm", "pml"],
            "pa": r.pa,
            "sm": float(r.sm),
            "fm": float(r.fm),
            "pml": r.pml,
        }
        for number, r in enumerate(records)
    ]


@contextmanager
def opened(
    path: Path, header: Mapping[str, Any] | None
) -> Iterator[tuple[RecordFile, list[Record]]]:
    """Create a file of records, or continue one that has the same header.

    `header`: None for a file of records alone, where something else says of what run it is. Gives
    the file and the records that are there. Raises ConfigError if it is of another run.
    """
    if header is not None:
        header = {"format": FORMAT, **header}
    records: list[Record] = []
    n_bytes = 0
    raw = path.read_bytes() if path.exists() else b""
    if header is None:
        records, n_bytes = _records(path, raw)
    elif b"\n" in raw:
        found, records, n_bytes = _header_and_records(path, raw)
        different = sorted(k for k in {*header, *found} if header.get(k) != found.get(k))
        if different:
            raise ConfigError(
                f"{path} holds a run with another {', '.join(different)}; give another file, or "
                "the settings it was made with"
            )
    with path.open("r+" if raw else "w", encoding="utf-8", newline="\n") as stream:
        stream.truncate(n_bytes)
        stream.seek(n_bytes)
        file = RecordFile(stream)
        if header is not None and n_bytes == 0:
            file._write(header)
        yield file, records


def _header_and_records(path: Path, raw: bytes) -> tuple[dict[str, Any], list[Record], int]:
    """Return header, whole records and the bytes they take."""
    first = raw[: raw.find(b"\n") + 1]
    try:
        header = msgspec.json.decode(first, type=dict[str, Any]) if first else {}
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ConfigError(f"{path} is damaged ({e}); give another file") from None
    if header.get("format") != FORMAT:
        raise ConfigError(f"{path} is no file of ProcBench answers; give another file")
    records, n_bytes = _records(path, raw[len(first) :])
    return header, records, len(first) + n_bytes


def _records(path: Path, raw: bytes) -> tuple[list[Record], int]:
    """Return whole records and the bytes they take."""
    whole = raw[: raw.rfind(b"\n") + 1]
    try:
        return [msgspec.json.decode(line, type=Record) for line in whole.splitlines()], len(whole)
    except (msgspec.MsgspecError, RecursionError) as e:
        raise ConfigError(f"{path} is damaged ({e}); give another file") from None
