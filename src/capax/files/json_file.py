"""Read the JSON objects that come with models, without Python's leniencies.

Python's `json` keeps the last of two equal keys without a word, and runs into its own
limits on deep nesting and huge integers; here all of these are a `FileFormatError`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capax.errors import FileFormatError
from capax.files.opening import open_regular


def read_json_object(path: Path, max_nbytes: int) -> dict[str, Any]:
    """Read the object in the file at `path`, which may have at most `max_nbytes`."""
    return parse_json_object(_read(path, max_nbytes), str(path), strict=False)


def read_json_list(path: Path, max_nbytes: int) -> list[Any]:
    """Read the list in the file at `path`, which may have at most `max_nbytes`."""
    value = _parse(_read(path, max_nbytes), str(path), strict=False)
    if not isinstance(value, list):
        raise FileFormatError(f"{path} is a JSON {type(value).__name__}; a list is needed")
    return value


def _read(path: Path, max_nbytes: int) -> bytes:
    with open_regular(path) as f:
        raw = f.read(max_nbytes + 1)
    if len(raw) > max_nbytes:
        raise FileFormatError(f"{path}: is larger than the {max_nbytes:,} bytes allowed")
    return raw


def parse_json_object(raw: bytes, what: str, *, strict: bool = True) -> dict[str, Any]:
    """Parse UTF-8 JSON that must be an object; `what` names it in the error.

    Not `strict` admits NaN and Infinity, which `json.dump` writes into configs, and
    reads the integer -0 as 0.
    """
    value = _parse(raw, what, strict)
    if not isinstance(value, dict):
        raise FileFormatError(f"{what} is a JSON {type(value).__name__}; an object is needed")
    return value


def _parse(raw: bytes, what: str, strict: bool) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]  # add returns None
            raise FileFormatError(f"{what}: key {twice!r} appears twice")
        return found

    def integer(digits: str) -> int:
        if digits == "-0" and strict:
            raise ValueError("-0 is not an integer")
        return int(digits)

    def constant(name: str) -> float:
        if strict:
            raise ValueError(f"{name} is not JSON")
        return float(name)

    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_constant=constant
        )
        if "\\ud" in text or "\\uD" in text:  # an escaped half of a character cannot be encoded
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as e:
        raise FileFormatError(f"{what} is not valid UTF-8 at byte {e.start}") from e
    except (ValueError, RecursionError) as e:
        raise FileFormatError(f"{what} is not valid JSON: {e}") from e
    return value
