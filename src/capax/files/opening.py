"""The one way model files are opened: regular files only, errors with the path in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from capax.errors import FileFormatError


def open_regular(path: Path) -> BinaryIO:
    """Open `path` for reading; `FileFormatError` if that fails or it is no regular file.

    A named pipe or a device would block or never end; opening does not wait for them.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise FileFormatError(f"cannot open {path}: {getattr(e, 'strerror', None) or e}") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileFormatError(f"cannot open {path}: it is not a regular file")
    return os.fdopen(fd, "rb")
