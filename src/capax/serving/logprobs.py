"""Log-probabilities in the two shapes of the OpenAI API: of completions, and of chat.

Both have one entry for each sampled token, the end token included, so their sum is the
log-probability of what was sampled.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from capax.engine.outputs import PositionLogprobs
from capax.files.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity; the hosted APIs write this


def token_string(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's text, or `bytes:\\xf0\\x9f` where it is not whole UTF-8 characters."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can write."""
    return max(logprob, LOWEST)


def chosen_of(position: PositionLogprobs) -> int:
    """Return the token that stands at a position: the first of its entries."""
    return next(iter(position))


def best_of(position: PositionLogprobs) -> list[tuple[int, float]]:
    """Return the most probable tokens that were asked for, best first."""
    ranked = [(e.rank, token, e.logprob) for token, e in position.items() if e.rank is not None]
    return [(token, logprob) for _, token, logprob in sorted(ranked)]


def chat_logprobs(tokenizer: Tokenizer, positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice or chunk."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_string(tokenizer, token),
            "logprob": finite(logprob),
            "bytes": list(tokenizer.token_bytes(token)),
        }

    content = []
    for position in positions:
        token = chosen_of(position)
        best = [entry(*pair) for pair in best_of(position)]
        content.append(entry(token, position[token].logprob) | {"top_logprobs": best})
    return {"content": content, "refusal": None}


def prompt_logprobs(
    tokenizer: Tokenizer, positions: Sequence[PositionLogprobs | None]
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: token id -> logprob, rank and text; null for the first."""
    return [
        None
        if position is None
        else {
            str(token): {
                "logprob": finite(entry.logprob),
                "rank": entry.rank,
                "decoded_token": token_string(tokenizer, token),
            }
            for token, entry in position.items()
        }
        for position in positions
    ]


class LegacyLogprobs:
    """Builds the `logprobs` object of a completion choice, all at once or chunk by chunk.

    `text_offset` counts characters from the start of the choice's text over all its chunks; a
    token that begins inside a character has the offset of that character.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def skip(self, n_chars: int) -> None:
        """Begin after this many characters, which no token of ours stands for."""
        self._offset += n_chars

    def encode(
        self, tokens: Sequence[int], positions: Sequence[PositionLogprobs | None]
    ) -> dict[str, Any]:
        """Return the object for the next tokens; a position is None where nothing precedes it."""
        texts: list[str] = []
        logprobs: list[float | None] = []
        best: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, position in zip(tokens, positions, strict=True):
            text = token_string(self._tokenizer, token)
            texts.append(text)
            logprobs.append(None if position is None else finite(position[token].logprob))
            best.append(None if position is None else self._best(token, position))
            offsets.append(self._advance(token, text))
        return {
            "tokens": texts,
            "token_logprobs": logprobs,
            "top_logprobs": best,
            "text_offset": offsets,
        }

    def _advance(self, token: int, text: str) -> int:
        """Go past a token; return where it began."""
        before = self._offset
        if token in self._hidden:
            return before
        self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token)))
        # Before whole characters, half a character may have become U+FFFD.
        return before if text.startswith("bytes:") else self._offset - len(text)

    def _best(self, token: int, position: PositionLogprobs) -> dict[str, float]:
        """Return text -> log-probability, best first, with the token that stands here.

        Two tokens may have one text; the more probable one is shown.
        """
        pairs = [*best_of(position), (token, position[token].logprob)]
        shown: dict[str, float] = {}
        for other, logprob in pairs:
            shown.setdefault(token_string(self._tokenizer, other), finite(logprob))
        return shown
