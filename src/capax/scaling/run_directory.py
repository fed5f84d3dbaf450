"""A run on disk that no stop can spoil: every finished sample is kept, none is made twice.

    manifest.json    what was asked for, and how it stands; replaced atomically
    samples.jsonl    one line per sample, append-only; holds only what a repetition would give again
    verdicts.jsonl   one line per (sample, checker, version), append-only
    timings.jsonl    one line per call to the model: seconds, tokens

Two runs with the same settings have the same sample lines, in whatever order. What was being
written when the process died is a torn last line: it is cut off and that sample made again. One
process at a time may write (a lock on manifest.lock); reading needs no lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import msgspec

from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.registry import write_atomically

Status = Literal["started", "success", "cancelled", "error", "limited"]
FORMAT = 1
BLOCK_NBYTES = 1 << 16


class Sample(msgspec.Struct, frozen=True):
    """One answer of the model. `new_tokens`: None where the endpoint does not say."""

    problem_id: str
    sample_idx: int
    seed: int
    prompt_tokens: int
    new_tokens: int | None
    finish_reason: str
    text: str

    @property
    def key(self) -> tuple[str, int]:
        return self.problem_id, self.sample_idx


class Verdict(msgspec.Struct, frozen=True):
    """What a checker read in a sample, and whether it is right."""

    problem_id: str
    sample_idx: int
    checker: str
    version: int
    answer: str | None
    correct: bool
    outcome: str | None = None  # how a check that runs something ended

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.problem_id, self.sample_idx, self.checker, self.version


class Timing(msgspec.Struct, frozen=True):
    """One call to the model: which samples of a problem it made, and what it took."""

    problem_id: str
    first_idx: int
    n: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    finished_at: float  # seconds since 1970


Row = TypeVar("Row", Sample, Verdict, Timing)


def new_run_path(parent: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """Return parent/<utc>-<name>-<hash8>, the hash being of the settings."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    content = json.dumps(settings, sort_keys=True).encode()
    return parent / f"{stamp}-{name}-{hashlib.sha256(content).hexdigest()[:8]}"


class RunDirectory:
    """A run opened for writing; enter it. `settings` decide what the samples are.

    Raises StoreError if another process writes it or it cannot be written, ConfigError if it
    was begun with other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._facts = dict(facts or {})
        self._files: dict[str, int] = {}
        self._lock = -1
        self.samples: set[tuple[str, int]] = set()
        self.verdicts: set[tuple[str, int, str, int]] = set()

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "manifest.lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StoreError(f"{self.path} is being written by another process") from None
        except OSError as e:
            raise StoreError(f"{self.path} cannot be written: {e.strerror}") from None
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        if (self.path / "manifest.json").exists():
            before = read_manifest(self.path)["settings"]
            for name in sorted({*before, *self._settings}):
                if before.get(name) != self._settings.get(name):
                    raise ConfigError(
                        f"{self.path} was begun with {name} {before.get(name)!r:.80}, not "
                        f"{self._settings.get(name)!r:.80}; use the same or another directory"
                    )
        for name in ("samples", "verdicts", "timings"):
            file = self.path / f"{name}.jsonl"
            _cut_torn_line(file)
            self._files[name] = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.samples = {sample.key for sample in read_rows(self.path, Sample)}
        self.verdicts = {verdict.key for verdict in read_rows(self.path, Verdict)}
        self.set_status("started")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            os.fsync(file)
        self._close()

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        os.close(self._lock)

    def add_samples(self, samples: Iterable[Sample]) -> None:
        """Append the samples that are not there yet."""
        new = [sample for sample in samples if sample.key not in self.samples]
        self._append("samples", new)
        self.samples.update(sample.key for sample in new)

    def add_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        """Append the verdicts that are not there yet."""
        new = [verdict for verdict in verdicts if verdict.key not in self.verdicts]
        self._append("verdicts", new)
        self.verdicts.update(verdict.key for verdict in new)

    def add_timing(self, timing: Timing) -> None:
        """Append what a call took."""
        self._append("timings", [timing])

    def set_status(self, status: Status, **facts: Any) -> None:
        """Replace the manifest: how the run stands, with further facts."""
        self._facts |= facts
        manifest = {
            "format": FORMAT,
            "status": status,
            "settings": self._settings,
            "n_samples": len(self.samples),
            **self._facts,
        }
        write_atomically(
            self.path / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n", 0o644
        )

    def _append(self, name: str, rows: list[Row]) -> None:
        data = memoryview(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        try:
            while data:
                data = data[os.write(self._files[name], data) :]
        except OSError as e:
            raise StoreError(f"{self.path / name}.jsonl cannot be written: {e.strerror}") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a run's manifest. Raises FileFormatError if it is none."""
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as e:
        raise StoreError(f"{file} cannot be read: {e.strerror}; is {path} a run?") from None
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        raise FileFormatError(f"{file} is no manifest of a run")
    if manifest.get("format") != FORMAT:
        raise FileFormatError(f"{file} has format {manifest.get('format')!r:.40}, not {FORMAT}")
    return manifest


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """Yield the complete lines of one of a run's files; a torn last one is left out.

    Raises FileFormatError naming a line that is damaged.
    """
    file = path / f"{kind.__name__.lower()}s.jsonl"
    decoder = msgspec.json.Decoder(kind)
    try:
        with open(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith(b"\n"):
                    yield _decode(decoder, line, file, number)
    except OSError as e:
        raise StoreError(f"{file} cannot be read: {e.strerror}; is {path} a run?") from None


def _decode(decoder: msgspec.json.Decoder[Row], line: bytes, file: Path, number: int) -> Row:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise FileFormatError(f"{file} line {number} is damaged: {e}") from None


def _cut_torn_line(file: Path) -> None:
    """Remove what follows the last newline: a line whose writing was interrupted."""
    try:
        with open(file, "r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            keep = 0
            while end and not keep:
                begin = max(end - BLOCK_NBYTES, 0)
                stream.seek(begin)
                newline = stream.read(end - begin).rfind(b"\n")
                keep, end = (begin + newline + 1 if newline >= 0 else 0), begin
            stream.truncate(keep)
    except FileNotFoundError:
        return
