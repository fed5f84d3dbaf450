"""A run on disk that no stop can spoil: every finished sample is kept, none is made twice.

    manifest.json    what was asked for, and how it stands; replaced atomically
    log.jsonl        when it began, went on, how far it was, how it ended
    samples.jsonl    one line per sample, append-only; holds only what a repetition would give again
    verdicts.jsonl   one line per (sample, checker, version), append-only
    timings.jsonl    one line per call to the model: seconds, tokens

Two runs with the same settings have the same sample lines, in whatever order. What was being
written when the process died is a torn last line: it is cut off and that sample made again. One
process at a time may write (a lock on manifest.lock); reading needs no lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from capax.errors import FileFormatError, StoreError
from capax.files.run_folder import RunFolder, append, cut_torn_line, kind_of


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


class RunDirectory(RunFolder):
    """A run of samples opened for writing; enter it. `config` decides what the samples are.

    Raises what `RunFolder` does.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(path, kind_of(config), config, facts)
        self._files: dict[str, int] = {}
        self.samples: set[tuple[str, int]] = set()
        self.verdicts: set[tuple[str, int, str, int]] = set()

    def _open(self) -> None:
        for name in ("samples", "verdicts", "timings"):
            file = self.path / f"{name}.jsonl"
            cut_torn_line(file)
            self._files[name] = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.samples = {sample.key for sample in read_rows(self.path, Sample)}
        self.verdicts = {verdict.key for verdict in read_rows(self.path, Verdict)}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            os.fsync(file)
        super().__exit__(kind, error, trace)

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        super()._close()

    def _counts(self) -> dict[str, Any]:
        return {"n_samples": len(self.samples)}

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

    def _append(self, name: str, rows: list[Row]) -> None:
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        append(self._files[name], data, self.path / f"{name}.jsonl")


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
