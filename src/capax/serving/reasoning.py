"""Thinking aloud: what a model writes between `<think>` and `</think>` is not the answer.

A template may open the thinking itself, close it at once (`enable_thinking: false`), or leave
it to the model. An answer of a given form begins after the thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from capax.decoding.constraint import Constraint, ConstraintFactory, Mask
from capax.files.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
_TAIL_TOKENS = 16


class Start(Enum):
    """Where an answer begins."""

    CONTENT = "in the answer"
    FREE = "at the answer, or at a <think>"
    THINKING = "in the thinking"


def start_of(tokenizer: Tokenizer, template: str, prompt_ids: Sequence[int]) -> Start:
    """Return where the answer to a rendered prompt begins."""
    if CLOSE not in template:
        return Start.CONTENT
    tail = tokenizer.decode(prompt_ids[-_TAIL_TOKENS:]).rstrip()
    if tail.endswith(OPEN):
        return Start.THINKING
    return Start.CONTENT if tail.endswith(CLOSE) else Start.FREE


class Part(NamedTuple):
    """A stretch of an answer."""

    is_reasoning: bool
    text: str


class Splitter:
    """Tells thinking and answer apart while the text comes."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._held = ""  # may yet become a tag, or is space around one
        self._skips_space = start is Start.THINKING
        self.is_thinking = start is Start.THINKING

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain now."""
        if self._start is Start.CONTENT:
            return [Part(False, text)] if text else []
        self._held += text
        parts: list[Part] = []
        if self._start is Start.FREE:
            begun = self._held.lstrip()
            if OPEN.startswith(begun):  # nothing, or the beginning of the tag
                if begun != OPEN:
                    return parts
            elif not begun.startswith(OPEN):
                return self._answer()
            self._held = begun[len(OPEN) :]
            self._start, self.is_thinking, self._skips_space = Start.THINKING, True, True
        if self.is_thinking:
            before, found, after = self._held.partition(CLOSE)
            if found:
                self._take(parts, before.rstrip("\n"))
                self.is_thinking, self._held, self._skips_space = False, after, True
            else:
                certain = len(before) - _uncertain(before)
                self._take(parts, before[:certain])
                self._held = before[certain:]
                return parts
        if self._skips_space:
            self._held = self._held.lstrip("\n")
            if not self._held:
                return parts
        return parts + self._answer()

    def finish(self) -> list[Part]:
        """Return what was held back, when no more will come."""
        held, self._held = self._held, ""
        return [Part(self.is_thinking, held)] if held else []

    def _take(self, parts: list[Part], text: str) -> None:
        if self._skips_space:
            text = text.lstrip("\n")
        if text:
            self._skips_space = False
            parts.append(Part(True, text))

    def _answer(self) -> list[Part]:
        held, self._held = self._held, ""
        self._start = Start.CONTENT
        return [Part(False, held)] if held else []


def _uncertain(text: str) -> int:
    """How many characters at the end may belong to the closing tag, or be lines before it."""
    n_tag = next((n for n in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:n])), 0)
    before = text[: len(text) - n_tag]
    return n_tag + len(before) - len(before.rstrip("\n"))


class AfterThinking:
    """A constraint that holds from the end of the thinking; an answer cannot end before it."""

    def __init__(self, inner: Constraint, tokenizer: Tokenizer, n_tokens: int, start: Start):
        self._inner = inner
        self._tokenizer = tokenizer
        self._n_tokens = n_tokens
        self._is_thinking = start is Start.THINKING
        # A model that begins to think itself does so with one token, or not at all.
        self._open_id = tokenizer.control_texts.get(OPEN) if start is Start.FREE else None
        self._tail = b""

    def mask(self) -> Mask | None:
        """Which tokens may come next: any but an end, in the thinking."""
        if self._is_thinking:
            mask = np.full((self._n_tokens + 31) // 32, 2**32 - 1, np.uint32)
            for token in self._tokenizer.eos_ids:
                mask[token // 32] &= ~np.uint32(1 << token % 32)
            return mask
        inner = self._inner.mask()
        if self._open_id is not None and inner is not None:
            inner = inner.copy()
            inner[self._open_id // 32] |= np.uint32(1 << self._open_id % 32)
        return inner

    def accept(self, token: int) -> bool:
        """Take the next token; returns whether the answer is complete."""
        if self._open_id is not None:
            self._is_thinking = token == self._open_id
            self._open_id = None
            if self._is_thinking:
                return False
        if not self._is_thinking:
            return self._inner.accept(token)
        close = CLOSE.encode()
        self._tail += self._tokenizer.token_bytes(token)
        self._is_thinking = close not in self._tail
        self._tail = self._tail[-len(close) :]
        return False


def after_thinking(
    factory: ConstraintFactory, tokenizer: Tokenizer, n_tokens: int, start: Start
) -> ConstraintFactory:
    """Return what makes constraints for answers that begin at `start`; n_tokens: of the model."""
    if start is Start.CONTENT:
        return factory
    return lambda: AfterThinking(factory(), tokenizer, n_tokens, start)
