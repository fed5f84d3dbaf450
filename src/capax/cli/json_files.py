"""JSON files that commands read and write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises ConfigError if it cannot be read or is none."""
    from capax.cli.compress import read_bytes
    from capax.errors import ConfigError

    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path} is no JSON file ({e})") from None


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, whole or not at all. Raises ConfigError if that cannot be."""
    from capax.errors import ConfigError

    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        raise ConfigError(f"cannot write {path} ({e.strerror}); choose another file") from None
