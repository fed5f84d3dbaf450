"""Sizes and durations as people type and read them."""

from __future__ import annotations

import math
import re

from capax.errors import ConfigError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MAX_NBYTES = 1 << 50

# '6G' is 6 GiB, as Kubernetes, Docker and llama.cpp users type it; only 'GB' is decimal.
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{letter: 1 << 10 * n for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1 << 10 * n for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": 1000**n for n, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([a-zA-Z]{0,3})\s*")

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|m|h|)\s*")


def parse_size(value: str | int, what: str = "size") -> int:
    """Return the bytes `value` means: '6G', '6GiB', '512MiB', '1.5GB' (decimal), '4096', 4096.

    Raises ConfigError, naming `what`, unless it lies between 1 byte and 1 PiB.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigError(f"{what} is {value!r:.60}; a size such as 512MiB or 6GiB is needed")
    if isinstance(value, int):
        nbytes: int | float = value
    else:
        match = _SIZE.fullmatch(value)
        unit = _SIZE_UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ConfigError(f"{what} is {value!r:.60}; a size such as 512MiB or 6GiB is needed")
        nbytes = int(match[1]) * unit if match[1].isdigit() else math.floor(float(match[1]) * unit)
    if not 1 <= nbytes <= MAX_NBYTES:
        raise ConfigError(f"{what} is {value!r:.60}; it must be between 1 byte and 1 PiB")
    return int(nbytes)


def format_size(nbytes: int) -> str:
    """Return `nbytes` with three significant figures or more in binary units: '2.33 GiB'."""
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(nbytes) >= unit:
            return (
                f"{nbytes / unit:.2f} {name}"
                if nbytes < 100 * unit
                else f"{nbytes / unit:.0f} {name}"
            )
    return f"{nbytes} B"


def size_argument(nbytes: int) -> str:
    """Return the smallest whole number of MiB that holds `nbytes`, as one types it: '313MiB'."""
    return f"{-(-nbytes // MIB)}MiB"


def parse_duration(value: str, what: str = "duration") -> float:
    """Return the seconds `value` means: '30s', '5m', '1.5h', '250ms', '10'.

    Raises ConfigError, naming `what`, for anything else.
    """
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ConfigError(f"{what} is {value!r:.60}; a duration such as 30s or 5m is needed")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """Return `seconds` in the unit a reader expects: '850 ms', '12.3 s', '5 m 20 s', '2 h 5 m'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    if minutes < 60:
        return f"{minutes} m {seconds - 60 * minutes:.0f} s"
    return f"{minutes // 60} h {minutes % 60} m"
