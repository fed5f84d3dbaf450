"""Where capax keeps its files: the XDG base directories, and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from capax.errors import StoreError

_DEFAULTS = {
    "CACHE": ".cache",
    "CONFIG": ".config",
    "DATA": ".local/share",
    "STATE": ".local/state",
}


def xdg_dir(kind: Literal["CACHE", "CONFIG", "DATA", "STATE"]) -> Path:
    """Return capax's directory of this kind (it may not exist yet).

    A relative `XDG_*_HOME` is ignored, as the XDG specification demands.
    """
    base = Path(os.environ.get(f"XDG_{kind}_HOME", ""))
    return (base if base.is_absolute() else Path.home() / _DEFAULTS[kind]) / "capax"


def private_dir(path: Path) -> Path:
    """Create `path` with mode 0700 where it is missing and return it.

    Raises StoreError if others may write to it: they could replace a model between its
    check and its use.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise StoreError(f"cannot create the directory {path}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"{path} is not a directory: move it away")
    if status.st_mode & stat.S_IWOTH:
        raise StoreError(f"{path} can be written by every user: run 'chmod 700 {path}'")
    return path
