"""The directory of a measurement that asks many questions and can be stopped at any of them.

    manifest.json   what was asked for, and how it stands
    samples.jsonl   one line per finished sample; holds only what a repetition would give again
    log.jsonl       when it began, went on, how far it was, how it ended
    record.json     the record of the finished measurement
    results.json    the same as lm-evaluation-harness writes it
    report.md, report.html, plots/

All but samples and log are made from the samples alone, and replaced atomically.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from capax.endpoints import BudgetExceeded
from capax.errors import ConfigError, StoreError
from capax.files.page import Table, markdown_table, page
from capax.files.registry import write_atomically
from capax.files.run_folder import RunFolder, Status, cut_torn_line
from capax.measuring.lm_eval_tables import model_label, results
from capax.measuring.records import Record, read_record, write_record

RECORD = "record.json"
Draw = Callable[[Path], None]


class MeasuredRun(RunFolder):
    """A run of a kind of measurement, opened for writing; enter it.

    Left without `finish`, its status says why. Raises what `RunFolder` does.
    """

    def __init__(
        self, path: Path, kind: str, settings: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        super().__init__(path, settings, {"kind": kind, **facts})
        self._is_finished = False

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    def _open(self) -> None:
        cut_torn_line(self.path / "log.jsonl")
        self.log("went on" if self.samples.exists() else "began")

    def log(self, event: str, **facts: Any) -> None:
        """Append what happened, and when."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as e:
            raise StoreError(f"{self.path / 'log.jsonl'} cannot be written: {e.strerror}") from None

    def finish(
        self, record: Record, summary: str, tables: Sequence[Table], *,
        draw: Draw | None = None, alt: str = "",
    ) -> None:  # fmt: skip
        """Write record, results and reports; `draw` writes the picture they show, an SVG."""
        svg = None
        if draw is not None:
            picture = self.path / "plots" / "curve.svg"
            picture.parent.mkdir(exist_ok=True)
            draw(picture)
            svg = picture.read_bytes()
        settings = json.dumps(self._settings, indent=1)
        parts = [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
        text = "\n\n".join([f"# {self.path.name}", summary, *parts, f"```json\n{settings}\n```"])
        made = page(self.path.name, summary, tables, settings, svg=svg, alt=alt)
        documents = {
            "results.json": json.dumps(results([record], model_label(record)), indent=1) + "\n",
            "report.md": text + "\n",
            "report.html": made,
        }
        for name, content in documents.items():
            write_atomically(self.path / name, content.encode(), 0o644)
        write_record(self.path, record, RECORD)
        self._end("success")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._is_finished:
                self._end(_status_of(error))
        finally:
            super().__exit__(kind, error, trace)

    def _end(self, status: Status) -> None:
        self._is_finished = True
        self.set_status(status)
        self.log("ended", status=status)


def measured_record(path: Path) -> Record:
    """Return the record of a finished run. Raises ConfigError if it is not finished."""
    if not (path / RECORD).exists():
        raise ConfigError(f"{path} is not finished; continue it with the command that began it")
    return read_record(path / RECORD)


def _status_of(error: BaseException | None) -> Status:
    if isinstance(error, BudgetExceeded):
        return "limited"
    is_stop = error is None or isinstance(error, KeyboardInterrupt | asyncio.CancelledError)
    return "cancelled" if is_stop else "error"
