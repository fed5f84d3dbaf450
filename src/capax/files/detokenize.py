"""Turn a stream of token ids into a stream of text, one whole character at a time.

A token may end in the middle of a UTF-8 character, so its text can only be shown when the
rest has come. `StreamingDetokenizer` holds back exactly the bytes that may still become a
character (at most three). `StopStringMatcher` holds back exactly the text that may still
become a stop string. Both give the same text however the stream is cut into pieces.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from capax.errors import ConfigError
from capax.files.tokenizer import Tokenizer

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 4096


class StreamingDetokenizer:
    """Text of one growing sequence; O(1) for each token.

    The pieces joined equal `tokenizer.decode(ids, skip_special, at_start)`. Set `at_start`
    when the ids begin a text of their own (the answer of a chat model) and leave it False
    when they go on from a prompt (then the first space belongs to the text).
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, at_start: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._strip_space = at_start and tokenizer.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that is complete with this token, often all of it, maybe none."""
        data = self._tokenizer.token_bytes(token_id)
        if token_id in self._skipped or not data:
            return ""
        if self._strip_space:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD if the ids stop inside a character."""
        return self._decoder.decode(b"", final=True)


class StopStringMatcher:
    """Finds the first stop string in a stream of text.

    The first is the one that ends first, and of several that end together the longest. The
    stop string itself and what follows it are never emitted. Each stop string is followed
    by its own Knuth-Morris-Pratt automaton: O(1) amortised for each character and stop.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        if len(self._stops) > MAX_STOP_STRINGS:
            raise ConfigError(
                f"{len(self._stops)} stop strings given, at most {MAX_STOP_STRINGS} are allowed"
            )
        for stop in self._stops:
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                raise ConfigError(
                    f"a stop string has {len(stop):,} characters: 1 to {MAX_STOP_CHARS:,} are "
                    "allowed"
                )
        self._fallbacks = [_fallback_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop seen so far
        self._held = ""
        self.stop: str | None = None  # the stop string that was found

    def push(self, text: str) -> tuple[str, bool]:
        """Take more text; return what can be shown now and whether a stop string was found."""
        if self.stop is not None:
            return "", True
        if not self._stops:
            return text, False
        seen = self._held + text
        for offset, char in enumerate(text, start=len(self._held) + 1):
            self._matched = [
                _advance(stop, fallback, matched, char)
                for stop, fallback, matched in zip(
                    self._stops, self._fallbacks, self._matched, strict=True
                )
            ]
            found = [
                stop
                for stop, matched in zip(self._stops, self._matched, strict=True)
                if matched == len(stop)
            ]
            if found:
                self.stop = max(found, key=len)
                self._held = ""
                return seen[: offset - len(self.stop)], True
        cut = len(seen) - max(self._matched)
        self._held = seen[cut:]
        return seen[:cut], False

    def flush(self) -> str:
        """Return the text held back, when no more will come."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


def _fallback_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is its suffix."""
    table = [0] * (len(stop) + 1)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[i] != stop[matched]:
            matched = table[matched]
        matched += stop[i] == stop[matched]
        table[i + 1] = matched
    return table


def _advance(stop: str, fallback: list[int], matched: int, char: str) -> int:
    while matched and stop[matched] != char:
        matched = fallback[matched]
    return matched + (stop[matched] == char)
