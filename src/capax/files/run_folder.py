"""The folder of a run: what was asked for, by what and where, how it stands, what happened.

    manifest.json   status, config, facts of model and machine; replaced atomically
    manifest.lock   held by the one process that writes
    log.jsonl       when it began, went on, how far it was, how it ended; append-only

What else lies there is the business of the run. Two runs with the same config have the same
results; a folder that was begun with another config is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from capax.errors import CapacityError, ConfigError, FileFormatError, StoreError
from capax.files.registry import write_atomically

Status = Literal["started", "success", "cancelled", "error", "limited"]
FORMAT = 2
BLOCK_NBYTES = 1 << 16
LOG_EVERY_S = 10.0
ENVIRONMENT = ("versions", "git", "hardware", "model")  # facts that may change between stops


def new_run_path(parent: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Return parent/<utc>-<name>-<hash8>, the hash being of the config."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    content = json.dumps(config, sort_keys=True).encode()
    return parent / f"{stamp}-{name}-{hashlib.sha256(content).hexdigest()[:8]}"


class RunFolder:
    """A run of a kind opened for writing; enter it. `config` decides what its results are.

    `facts`: what a reader wants to know besides; must be publishable. Left without a status, the
    manifest says why: cancelled, limited, or error. Raises StoreError if another process writes it
    or it cannot be written, ConfigError if it was begun with another config.
    """

    def __init__(
        self, path: Path, kind: str, config: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.config = json.loads(json.dumps(config))
        self._facts = {"kind": kind, **json.loads(json.dumps(facts or {}))}
        self._status: Status = "started"
        self._lock = self._log = -1
        self._logged_at = 0.0

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
            before = self._before()
            cut_torn_line(self.path / "log.jsonl")
            self._log = _opened_to_append(self.path / "log.jsonl")
            self._open()
            self._facts["started"] = before.get("started") or _utc()
            if before:
                self.log("went on", **self._counts(), changed=changes(before, self._facts))
            else:
                self.log("began", **self._counts())
            self.set_status("started")
        except BaseException:
            self._close()
            raise
        return self

    def _before(self) -> dict[str, Any]:
        """Return the manifest there is, {} for a new run."""
        if not (self.path / "manifest.json").exists():
            return {}
        manifest = read_manifest(self.path)
        before = manifest["config"]
        names = sorted(k for k in {*before, *self.config} if before.get(k) != self.config.get(k))
        if names:
            differences = ", ".join(
                f"{name} {before.get(name)!r:.80}, not {self.config.get(name)!r:.80}"
                for name in names
            )
            raise ConfigError(
                f"{self.path} was begun with {differences}; use the same or another directory"
            )
        return manifest

    def _open(self) -> None:
        """Open further files; the lock is held and the config is right."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._status == "started":
                self.set_status(_status_of(error))
            # The kind of an error alone: its sentence may name places of this machine.
            self.log("ended", status=self._status, **self._counts(), **_kind_of(error))
        finally:
            self._close()

    def _close(self) -> None:
        if self._log >= 0:
            os.close(self._log)
        os.close(self._lock)

    def log(self, event: str, **facts: Any) -> None:
        """Append what happened, and when."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        append(self._log, line.encode(), self.path / "log.jsonl")

    def log_progress(self, done: int, total: int) -> None:
        """Log how far the run is, every few seconds and at its end."""
        if done >= total or time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            self.log("progress", done=done, of=total)

    def set_status(self, status: Status, **facts: Any) -> None:
        """Replace the manifest: how the run stands, with further facts."""
        self._status = status
        self._facts |= facts
        manifest = {
            "format": FORMAT,
            "status": status,
            "config": self.config,
            **self._counts(),
            **self._facts,
        }
        if status != "started":
            manifest["ended"] = _utc()
        write_atomically(
            self.path / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n", 0o644
        )

    def _counts(self) -> dict[str, Any]:
        """Return what manifest and log say of the results there are."""
        return {}


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a run's manifest, an older one as it would be written now.

    Raises FileFormatError if it is none.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
    except OSError as e:
        raise StoreError(f"{file} cannot be read: {e.strerror}; is {path} a run?") from None
    except (ValueError, RecursionError):
        manifest = None
    if isinstance(manifest, dict) and manifest.get("format") == 1:
        manifest = _from_format_1(manifest)
    elif isinstance(manifest, dict) and manifest.get("format", FORMAT) != FORMAT:
        raise FileFormatError(f"{file} has format {manifest['format']!r:.40}, not {FORMAT}")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise FileFormatError(f"{file} is no manifest of a run")
    return manifest


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    names = {"settings": "config", "machine": "hardware"}
    renamed = {names.get(name, name): value for name, value in manifest.items()}
    return {"kind": kind_of(renamed.get("config")), **renamed}


def kind_of(config: object) -> str:
    """Return the kind of a run of samples, by what its config has."""
    if not isinstance(config, dict):
        return ""
    return "rounds" if "rounds" in config else "strategy" if "strategy" in config else "samples"


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return which facts of the environment are not what they were, as dotted names."""
    old, new = (dict(_flat({k: m.get(k) for k in ENVIRONMENT})) for m in (before, after))
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def append(file: int, data: bytes, path: Path) -> None:
    """Write all of `data` at the end of an open file. Raises StoreError naming `path`."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror}") from None


def cut_torn_line(file: Path) -> None:
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


def _opened_to_append(file: Path) -> int:
    try:
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as e:
        raise StoreError(f"{file} cannot be written: {e.strerror}") from None


def _status_of(error: BaseException | None) -> Status:
    from asyncio import CancelledError

    if isinstance(error, CapacityError):
        return "limited"
    is_stop = error is None or isinstance(error, KeyboardInterrupt | CancelledError)
    return "cancelled" if is_stop else "error"


def _kind_of(error: BaseException | None) -> dict[str, str]:
    return {} if error is None else {"error": type(error).__name__}


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
