"""Finds function calls in an answer while it is written.

A call's name is reported as soon as it is known, its arguments piece by piece as the model
writes them. Text that begins like a call and turns out to be none is content.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from capax.serving.shape import Delta
from capax.serving.tools import PYTHON_TAG, Style

_SPACE = " \t\r\n"
_KEYS = frozenset({"arguments", "parameters"})


class ObjectReader:
    """Reads one JSON object {"name": ..., "arguments": {...}}, character by character."""

    def __init__(self) -> None:
        self.raw = ""  # all of it, so far
        self.name: str | None = None
        self.is_over = False
        self.is_broken = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._key: str | None = None  # whose value is being read, at the outermost level
        self._word = ""  # the string being read, or the last one
        self._value = ""  # of that key
        self._arguments = ""  # read and not yet fetched
        self._has_begun = False  # some have been fetched

    def push(self, char: str) -> None:
        """Take the next character, which belongs to the object."""
        self.raw += char
        was_depth, was_string = self._depth, self._in_string
        if self._in_string:
            self._string(char)
        elif char == '"':
            self._in_string, self._word = True, ""
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        if not was_depth:  # the first character
            self.is_broken = char != "{"
            return
        if was_depth == 1 and not was_string and char in ":,}":
            if char == ":" and self._key is None:
                self._key = _decoded(self._word)
                self._value = ""
                return
            if char in ",}" and self._key is not None:
                self._end_value()
        if self._key is not None:
            self._value += char
            if self._key in _KEYS:
                self._arguments += char
            if char in "}]" and self._depth == 1 and not self._in_string:
                self._key = None  # the value is complete
        if self._depth == 0:
            self.is_over = True

    def take_arguments(self) -> str:
        """Return what came of the arguments since the last call; space around them is left out."""
        text = self._arguments
        if not self._has_begun and text.lstrip(_SPACE)[:1] == '"':  # JSON within a string
            if not self.is_over:
                return ""
            try:
                text = str(json.loads(text))
            except ValueError:
                self.is_broken = True
        self._has_begun = self._has_begun or bool(text.strip(_SPACE))
        self._arguments = ""
        return text

    def _string(self, char: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_string = False
            return
        self._word += char

    def _end_value(self) -> None:
        if self._key == "name":
            try:
                name = json.loads(self._value)
            except ValueError:
                name = None
            self.name = name if isinstance(name, str) else None
            self.is_broken = self.name is None
        self._key = None


def _decoded(word: str) -> str:
    try:
        return str(json.loads(f'"{word}"'))
    except ValueError:
        return word


class CallParser:
    """Splits one answer into content and calls. `names`: of the functions that exist."""

    def __init__(self, style: Style, names: frozenset[str]) -> None:
        self._style = style
        self._names = names
        self._held = ""  # not yet decided
        self._reader: ObjectReader | None = None
        self._is_named = False  # the call being read has been reported
        self._opening = ""  # what stood before the object, should it be no call
        self._in_list = False
        self._has_called = False  # in the list being read
        self._needs_end = False  # the mark after a call may come
        self._has_text = False  # an answer that is no call; nothing in it will be
        self.calls: list[dict[str, Any]] = []
        self.content = ""

    def push(self, text: str) -> list[Delta]:
        """Take more text; return what is certain now."""
        deltas: list[Delta] = []
        self._held += text
        while self._held and self._step(deltas):
            pass
        return _joined(deltas)

    def finish(self) -> list[Delta]:
        """Return what was held back, when no more will come."""
        deltas: list[Delta] = []
        rest = self._held
        if self._reader is not None and not self._is_named:
            rest = self._opening + self._reader.raw + rest
        elif self._reader is not None:
            rest = ""
        elif self._in_list and not self._has_called:
            rest = self._opening + rest
        self._held, self._reader = "", None
        if rest.strip() or (rest and not self.calls):
            self._say(rest, deltas)
        return _joined(deltas)

    # --- one step -------------------------------------------------------------------------

    def _step(self, deltas: list[Delta]) -> bool:
        """Decide about the first of what is held; False if more text is needed."""
        if self._reader is not None:
            return self._read(self._reader, deltas)
        if self._in_list:
            return self._list(deltas)
        return self._search(deltas) if self._style.begin else self._alone(deltas)

    def _search(self, deltas: list[Delta]) -> bool:
        """Look for the mark before a call; what comes before it is content."""
        begin, end = self._style.begin, self._style.end
        if self._needs_end:
            rest = self._held.lstrip(_SPACE)
            if end.startswith(rest) and rest != end:
                return False
            self._needs_end = False
            if rest.startswith(end):
                self._held = rest[len(end) :]
                return True
        at = self._held.find(begin)
        if at >= 0:
            before, after = self._held[:at].rstrip(_SPACE), self._held[at + len(begin) :]
            if before:
                self._say(before, deltas)
            stripped = after.lstrip(_SPACE)
            if not stripped:
                self._held = begin + after
                return False
            self._opening = begin + after[: len(after) - len(stripped)]
            self._held = stripped
            if self._style.is_list:
                if stripped[0] != "[":
                    self._say(self._opening, deltas)
                    return True
                self._opening += "["
                self._held, self._in_list, self._has_called = stripped[1:], True, False
                return True
            return self._open(deltas)
        n_held = next(
            (n for n in range(min(len(begin) - 1, len(self._held)), 0, -1)
             if self._held.endswith(begin[:n])), 0,
        )  # fmt: skip
        certain = self._held[: len(self._held) - n_held].rstrip(_SPACE)
        if certain:
            self._say(certain, deltas)
            self._held = self._held[len(certain) :]
        return False

    def _list(self, deltas: list[Delta]) -> bool:
        """Between the calls of a list."""
        char, rest = self._held[0], self._held[1:]
        if char == "{":
            return self._open(deltas)
        if char in _SPACE + ",]":
            self._opening += char
            self._held = rest
            if char != "]":
                return True
        self._in_list = False
        if not self._has_called:
            self._say(self._opening, deltas)
        return True

    def _alone(self, deltas: list[Delta]) -> bool:
        """Where an answer may be calls and nothing else."""
        rest = self._held.lstrip(_SPACE + (";" if self.calls else ""))
        if not self._has_text:
            if rest.startswith(PYTHON_TAG):
                self._held = rest[len(PYTHON_TAG) :]
                return True
            if PYTHON_TAG.startswith(rest):  # also nothing
                return False
            if rest[0] == "{":
                self._opening, self._held = "", rest
                return self._open(deltas)
        self._has_text = True
        self._say(self._held, deltas)
        self._held = ""
        return False

    def _open(self, deltas: list[Delta]) -> bool:
        if self._held[0] != "{":
            self._say(self._opening, deltas)
            return True
        self._reader, self._is_named = ObjectReader(), False
        return True

    def _read(self, reader: ObjectReader, deltas: list[Delta]) -> bool:
        for i, char in enumerate(self._held):
            reader.push(char)
            if reader.is_broken or (reader.name is not None and reader.name not in self._names):
                return self._give_up(reader, self._held[i + 1 :], deltas)
            if reader.is_over:
                self._held = self._held[i + 1 :]
                if reader.name is None:
                    return self._give_up(reader, self._held, deltas)
                self._report(reader, deltas)
                if not self.calls[-1]["function"]["arguments"].strip():
                    self._add_arguments("{}", deltas)
                self._reader, self._opening = None, ""
                self._has_called, self._needs_end = True, bool(self._style.end)
                return True
        self._held = ""
        if reader.name is not None:
            self._report(reader, deltas)
        return False

    def _give_up(self, reader: ObjectReader, rest: str, deltas: list[Delta]) -> bool:
        self._reader, self._held, self._in_list = None, rest, False
        self._has_text = not self._style.begin
        self._say(self._opening + reader.raw, deltas)
        return True

    # --- what is reported -----------------------------------------------------------------

    def _report(self, reader: ObjectReader, deltas: list[Delta]) -> None:
        if not self._is_named:
            self._is_named = True
            function = {"name": reader.name, "arguments": ""}
            call = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            first = {"index": len(self.calls), **call, "function": dict(function)}
            deltas.append({"tool_calls": [first]})
            self.calls.append({**call, "function": function})
        piece = reader.take_arguments()
        if not self.calls[-1]["function"]["arguments"]:
            piece = piece.lstrip(_SPACE)
        if piece:
            self._add_arguments(piece, deltas)

    def _add_arguments(self, piece: str, deltas: list[Delta]) -> None:
        self.calls[-1]["function"]["arguments"] += piece
        deltas.append(
            {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": piece}}]}
        )

    def _say(self, text: str, deltas: list[Delta]) -> None:
        if text:
            self.content += text
            deltas.append({"content": text})


def _joined(deltas: list[Delta]) -> list[Delta]:
    """Join neighbouring pieces of content."""
    joined: list[Delta] = []
    for delta in deltas:
        if joined and "content" in delta and "content" in joined[-1]:
            joined[-1] = {"content": joined[-1]["content"] + delta["content"]}
        else:
            joined.append(delta)
    return joined
