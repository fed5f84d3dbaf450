"""Records: one measurement in one JSON file, the same schema for all of them.

A record says what was measured (kind, data, settings), of what (model and its digest, methods),
on what (machine, budget, versions) and what came out (figures with unit and interval, beside the
figure of a peer where there was one). A folder of records is the store: files are written whole,
never changed, and named `<utc>-<kind>-<hash8>.json`, the hash being of their content.
"""

from __future__ import annotations

import hashlib
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.registry import write_atomically
from capax.files.xdg import private_dir, xdg_dir

SCHEMA = "capax.record/1"
MAX_RECORD_NBYTES = 4 << 20
MAX_RECORDS = 100_000  # of a folder
NO_FOLDER = "none"  # in place of a folder: keep no record

Setting = str | int | float | bool | None
Settings = dict[str, Setting]


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured. `digest`: SHA-256 of its weights, "" for a model behind a server."""

    name: str
    digest: str = ""
    architecture: str = ""
    n_params: int | None = None
    weights_nbytes: int | None = None


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it was measured on. `digest`: SHA-256 of exactly what was read."""

    name: str
    digest: str
    n_items: int | None = None


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same figure of somebody else, from the same run."""

    name: str
    value: float


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number that came out.

    `value` is None where the measurement says that there is no such number, `note` why.
    `interval`: 95 % unless `note` says otherwise. `of_machine`: times and what follows from them.
    """

    name: str
    value: float | None
    unit: str = ""
    interval: tuple[float, float] | None = None
    higher_is_better: bool | None = None
    of_machine: bool = False
    n: int | None = None
    peer: Peer | None = None
    note: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement.

    `method`: spelling of weights, kv, decoding. `settings`, with kind, data and seed, decide what
    the figures mean. `budget`: memory_bytes, tokens, seconds that were allowed.
    """

    schema: str = SCHEMA
    kind: str
    time: str
    model: Model
    data: Data | None = None
    method: Settings = {}
    settings: Settings = {}
    seed: int | None = None
    budget: Settings = {}
    machine: Settings = {}
    versions: dict[str, str] = {}
    figures: tuple[Figure, ...] = ()

    @property
    def id(self) -> str:
        """Eight hexadecimal digits of the SHA-256 of the content."""
        return hashlib.sha256(_encode(self)).hexdigest()[:8]

    def figure(self, name: str) -> Figure | None:
        """Return the figure of this name, or None."""
        return next((figure for figure in self.figures if figure.name == name), None)


class Found(NamedTuple):
    """A record and the file it lies in."""

    path: Path
    record: Record


class Listing(NamedTuple):
    """What a folder holds, oldest first; `damaged` names files that are no records, and why."""

    found: list[Found]
    damaged: list[str]


def now() -> str:
    """Return the time as records have it: UTC, so fine that no two measurements share one."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def versions() -> dict[str, str]:
    """Return the versions a figure may depend on."""
    import numpy as np

    import capax

    return {"capax": capax.__version__, "numpy": np.__version__,
            "python": platform.python_version()}  # fmt: skip


def default_folder() -> Path:
    """Return where records go that are given no folder: `records` in capax's data directory."""
    return xdg_dir("DATA") / "records"


def prepare_folder(folder: Path) -> Path:
    """Create a folder for records. Raises StoreError before anything is measured in vain."""
    import os

    private_dir(folder) if folder == default_folder() else _make(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            f"{folder} cannot be written; choose another folder with --record DIR, or keep none "
            f"with --record {NO_FOLDER}"
        )
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"cannot create the folder {folder}: {e.strerror}") from None


def write_record(folder: Path, record: Record, name: str | None = None) -> Path:
    """Write a record into a folder and return its path. The same record twice is one file.

    `name`: of the file, for those who look for it later. Raises ConfigError if a figure is not
    finite: what has no value is None.
    """
    for figure in record.figures:
        numbers = [figure.value, *(figure.interval or ()), figure.peer and figure.peer.value]
        if not all(number is None or math.isfinite(number) for number in numbers):
            raise ConfigError(f"{figure.name} of a {record.kind} record is not finite")
    stamp = re.sub(r"[^0-9T]", "", record.time.partition(".")[0]) + "Z"
    kind = re.sub(r"[^a-z0-9]+", "-", record.kind.lower())
    path = folder / (name or f"{stamp}-{kind}-{record.id}.json")
    write_atomically(path, msgspec.json.format(_encode(record), indent=1) + b"\n", 0o644)
    return path


def read_record(path: Path) -> Record:
    """Return the record of a file. Raises FileFormatError naming what is wrong with it."""
    try:
        if not path.is_file():  # a pipe would never end
            raise StoreError(f"{path} is no file with a record")
        with path.open("rb") as stream:
            content = stream.read(MAX_RECORD_NBYTES + 1)
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}") from None
    if len(content) > MAX_RECORD_NBYTES:
        raise FileFormatError(f"{path} has more than {MAX_RECORD_NBYTES >> 20} MiB: no record")
    try:
        record = msgspec.json.decode(content, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise FileFormatError(f"{path} is no record: {e}") from None
    if record.schema != SCHEMA:
        raise FileFormatError(f"{path} has schema {record.schema!r:.40}, not {SCHEMA}")
    return record


def list_records(folder: Path) -> Listing:
    """Return the records of a folder and its sub-folders, oldest first.

    Other JSON files are left out in silence; a file that claims to be a record and is damaged is
    named. Raises StoreError if there is no folder, ConfigError if it holds too many files.
    """
    found: list[Found] = []
    damaged: list[str] = []
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder} with records")
    for number, path in enumerate(_json_files(folder)):
        if number >= MAX_RECORDS:
            raise ConfigError(f"{folder} has more than {MAX_RECORDS:,} JSON files; name a part")
        try:
            found.append(Found(path, read_record(path)))
        except (FileFormatError, StoreError) as e:
            if _claims_to_be_a_record(path):
                damaged.append(str(e))
    found.sort(key=lambda each: (each.record.time, each.path.name))
    return Listing(found, damaged)


def _json_files(folder: Path) -> Iterator[Path]:
    import os

    for parent, folders, names in os.walk(folder):  # links to folders are not followed
        folders.sort()
        yield from (Path(parent) / n for n in sorted(names) if n.endswith(".json") and n[0] != ".")


def _claims_to_be_a_record(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return b"capax.record/" in stream.read(1 << 16)
    except OSError:
        return True


def find(listing: Sequence[Found], wanted: str) -> Found:
    """Return the record whose id begins with `wanted`, or which lies in that file.

    Raises ConfigError if there is none, or several.
    """
    hits = [f for f in listing if f.record.id.startswith(wanted) or f.path.name == wanted]
    if len(hits) != 1 and wanted in ("last", "latest") and listing:
        return listing[-1]
    if not hits:
        raise ConfigError(
            f"there is no record {wanted!r:.60} among {len(listing)}; 'capax measure list' has ids"
        )
    if len({hit.record.id for hit in hits}) > 1:
        names = ", ".join(hit.record.id for hit in hits[:8])
        raise ConfigError(f"{wanted!r:.60} is the beginning of {len(hits)} records: {names}")
    return hits[0]


def basis(record: Record) -> dict[str, Any]:
    """Return what must be equal for figures of two records to mean the same."""
    data = record.data
    return {
        "kind": record.kind,
        "data": None if data is None else data.digest,
        "seed": record.seed,
        **{f"settings.{name}": value for name, value in record.settings.items()},
    }


def subject(record: Record) -> dict[str, Any]:
    """Return what may differ: that is what a comparison is about."""
    model = record.model
    return {
        "model": model.name,
        "model.digest": model.digest,
        **{f"method.{name}": value for name, value in record.method.items()},
        **{f"budget.{name}": value for name, value in record.budget.items()},
        **{f"machine.{name}": value for name, value in record.machine.items()},
        **{f"versions.{name}": value for name, value in record.versions.items()},
    }


class Difference(NamedTuple):
    """A key that is not the same in all records; one value each, None where it is missing."""

    key: str
    values: tuple[Any, ...]


def differences(parts: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return the keys whose values are not all equal (and of one type), in order of appearance."""
    keys = dict.fromkeys(key for part in parts for key in part)
    rows = [Difference(key, tuple(part.get(key) for part in parts)) for key in keys]
    return [row for row in rows if len({(type(v), v) for v in row.values}) > 1]


def _encode(record: Record) -> bytes:
    return msgspec.json.encode(record, order="deterministic")
