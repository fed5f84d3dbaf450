"""The folder of a run: who writes it, what was asked for, how it stands.

    manifest.json   settings, status and facts; replaced atomically
    manifest.lock   held by the one process that writes

What else lies there is the business of the run. Two runs with the same settings have the same
results; a folder that was begun with other settings is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.registry import write_atomically

Status = Literal["started", "success", "cancelled", "error", "limited"]
FORMAT = 1
BLOCK_NBYTES = 1 << 16


def new_run_path(parent: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """Return parent/<utc>-<name>-<hash8>, the hash being of the settings."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    content = json.dumps(settings, sort_keys=True).encode()
    return parent / f"{stamp}-{name}-{hashlib.sha256(content).hexdigest()[:8]}"


class RunFolder:
    """A run opened for writing; enter it. `settings` decide what its results are.

    Raises StoreError if another process writes it or it cannot be written, ConfigError if it
    was begun with other settings.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._facts = dict(facts or {})
        self._lock = -1

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
            if (self.path / "manifest.json").exists():
                self._check(read_manifest(self.path)["settings"])
            self._open()
            self.set_status("started")
        except BaseException:
            self._close()
            raise
        return self

    def _check(self, before: Mapping[str, Any]) -> None:
        for name in sorted({*before, *self._settings}):
            if before.get(name) != self._settings.get(name):
                raise ConfigError(
                    f"{self.path} was begun with {name} {before.get(name)!r:.80}, not "
                    f"{self._settings.get(name)!r:.80}; use the same or another directory"
                )

    def _open(self) -> None:
        """Open further files; the lock is held and the settings are right."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        os.close(self._lock)

    def set_status(self, status: Status, **facts: Any) -> None:
        """Replace the manifest: how the run stands, with further facts."""
        self._facts |= facts
        manifest = {
            "format": FORMAT,
            "status": status,
            "settings": self._settings,
            **self._counts(),
            **self._facts,
        }
        write_atomically(
            self.path / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n", 0o644
        )

    def _counts(self) -> dict[str, Any]:
        """Return what the manifest says of the results there are."""
        return {}


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
