"""The directory of a measurement that asks many questions and can be stopped at any of them.

    manifest.json   what was asked for, and how it stands
    samples.jsonl   one line per finished sample; holds only what a repetition would give again
    log.jsonl       when it began, went on, how far it was, how it ended
    record.json     the record of the finished measurement; records/ where there are several
    results.json    the same as lm-evaluation-harness writes it
    report.md, report.html, plots/

All but samples and log are made from the samples alone, and replaced atomically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from capax.errors import ConfigError
from capax.files.page import Table
from capax.files.run_folder import RunFolder, read_manifest
from capax.files.run_report import write_reports
from capax.measuring.lm_eval_tables import merged_results
from capax.measuring.records import Record, list_records, read_record, write_record

RECORD = "record.json"
RECORDS = "records"
Draw = Callable[[Path], None]


class MeasuredRun(RunFolder):
    """A measurement opened for writing; enter it. Raises what `RunFolder` does."""

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    def finish(
        self, records: Sequence[Record], summary: str, tables: Sequence[Table], *,
        draw: Draw | None = None, alt: str = "",
    ) -> None:  # fmt: skip
        """Write records, results and reports; `draw` writes the picture they show, an SVG."""
        svg = None
        if draw is not None:
            picture = self.path / "plots" / "curve.svg"
            picture.parent.mkdir(exist_ok=True)
            draw(picture)
            svg = picture.read_bytes()
        write_reports(
            self.path, merged_results(records), summary, tables, self.config, svg=svg, alt=alt
        )
        if len(records) == 1:
            write_record(self.path, records[0], RECORD)
        self.set_status("success")


def measured_records(path: Path) -> list[Record]:
    """Return the records of a finished run. Raises ConfigError if it is not finished."""
    if (path / RECORD).exists():
        return [read_record(path / RECORD)]
    if read_manifest(path)["status"] == "success" and (path / RECORDS).is_dir():
        return [found.record for found in list_records(path / RECORDS).found]
    raise ConfigError(f"{path} is not finished; continue it with the command that began it")
