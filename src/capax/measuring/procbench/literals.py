"""Reads list and string literals from text that may be cut off: JSON, Python, or bare words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 4
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CODE = re.compile(r"u([0-9a-fA-F]{4})")
_QUOTES = "\"'`"


@dataclass(frozen=True, slots=True)
class Word:
    """A token without quotes: a number, or a string that somebody did not quote."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A value (str if quoted, Word, or list of values) and the index after it.

    `is_whole`: whether it ended before the text did; the items of a list are always whole, an
    unfinished one is dropped.
    """

    value: Any
    end: int
    is_whole: bool


def read(text: str, start: int, depth: int = 0) -> Literal | None:
    """Read the literal that begins at `start`, after blanks; None if there is none."""
    start = skip_blanks(text, start)
    if start >= len(text):
        return None
    if text[start] in "[(":
        return _read_list(text, start, depth) if depth < MAX_DEPTH else None
    if text[start] in _QUOTES:
        return _read_quoted(text, start)
    end = start
    while end < len(text) and text[end] not in ",[](){}\n":
        end += 1
    word = text[start:end].strip()
    return Literal(Word(word), end, end < len(text)) if word else None


def skip_blanks(text: str, start: int) -> int:
    """Return the index of the first character from `start` on that is no blank."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _read_list(text: str, start: int, depth: int) -> Literal | None:
    close = "]" if text[start] == "[" else ")"
    items: list[Any] = []
    at = start + 1
    while True:
        at = skip_blanks(text, at)
        if at >= len(text):
            return Literal(items, at, False)
        if text[at] == close:
            return Literal(items, at + 1, True)
        if text[at] in ",|":
            at += 1
            continue
        item = read(text, at, depth + 1)
        if item is None:
            return None
        if not item.is_whole:
            return Literal(items, len(text), False)
        items.append(item.value)
        at = item.end


def _read_quoted(text: str, start: int) -> Literal | None:
    quote = text[start]
    parts: list[str] = []
    at = start + 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and quote != "`":
            at += 1
            if at >= len(text):
                break
            code = _CODE.match(text, at)
            if code:
                parts.append(chr(int(code[1], 16)))
                at += 4
            else:
                parts.append(_ESCAPES.get(text[at], text[at]))
        else:
            parts.append(text[at])
        at += 1
    return Literal("".join(parts), at + 1, at < len(text))
