"""Typed access to the raw values of a configuration, for both kinds of files."""

from __future__ import annotations

import math
from collections.abc import Mapping

from capax.errors import ConfigError
from capax.files.config import check_number, check_whole


class Fields:
    """Typed access to the raw values of a file; errors name the key as the file spells it."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, high: int, *, default: int | None = None, low: int = 1) -> int:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{key} is missing; a whole number is needed")
            return default
        return check_whole(key, value, low, high)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{key} is missing; a number is needed")
            return default
        return check_number(key, value, low, high)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is {value!r:.60}; true or false is needed")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{key} is {value!r:.60}; a string is needed")
        return value[:4096] if value else None

    def refuse_unless(self, key: str, allowed: tuple[object, ...]) -> None:
        value = self.values.get(key)
        if value is not None and not any(
            value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed
        ):
            raise ConfigError(
                f"{key} is {value!r:.60}, which capax does not run; "
                f"it runs {' or '.join(repr(x) for x in allowed) or 'models without it'}"
            )


def yarn_mscale(factor: float, multiplier: float = 1.0) -> float:
    """Return how much yarn sharpens attention for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0
