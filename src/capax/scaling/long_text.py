"""A text of any length as token ids on disk, made piece by piece.

Only one piece of the text and one segment of its tokens are in memory at a time.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from capax.errors import ConfigError
from capax.files.tokenizer import Tokenizer

PIECE_CHARS = 1 << 16  # tokenised at a time
_WITNESS_CHARS = 256  # on both sides of a cut, to see that it changes no token
_TOKEN = np.dtype("<i4")
# Where pre-tokenizers cut: between a word or mark and the space before the next word.
_CUT = re.compile(r"(?<=[^\s])(?=[ \n][^\s])")
_SENTENCE_END = re.compile(rb"[.!?][\"')\]]*$")


class LongText:
    """The token ids of a text, which may come as one string or in parts; a context manager.

    It is tokenised in pieces, cut only where the tokens to both sides are those of the whole.
    Raises ConfigError for an empty text, or one with a stretch of 64 Ki characters without such a
    place, as it is read.
    """

    def __init__(self, tokenizer: Tokenizer, text: str | Iterable[str]) -> None:
        self._tokenizer = tokenizer
        self._file = tempfile.TemporaryFile(prefix="capax-")  # noqa: SIM115  # closed by __exit__
        self.n_tokens = 0
        try:
            for piece in _pieces(tokenizer, [text] if isinstance(text, str) else text):
                ids = tokenizer.encode(piece, add_special=False)
                self._file.write(np.array(ids, _TOKEN).tobytes())
                self.n_tokens += len(ids)
            if not self.n_tokens:
                raise ConfigError("the text is empty; there is nothing to ask about")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def tokens(self, begin: int, end: int) -> list[int]:
        """Return tokens begin .. end - 1."""
        self._file.seek(begin * _TOKEN.itemsize)
        data = self._file.read((end - begin) * _TOKEN.itemsize)
        tokens: list[int] = np.frombuffer(data, _TOKEN).tolist()
        return tokens

    def text(self, begin: int, end: int) -> str:
        """Return the text of tokens begin .. end - 1."""
        return self._tokenizer.decode(self.tokens(begin, end), at_start=begin == 0)

    def segments(self, size: int, overlap: int, *, snap: bool) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of segments of about `size` tokens; each but the first begins
        `overlap` before the end of the last.

        `snap`: end them at a line or sentence within a tenth of their size, if there is one.
        """
        begin = 0
        while True:
            end = begin + size
            if end >= self.n_tokens:
                yield begin, self.n_tokens
                return
            if snap:
                end = self._snapped(end, size // 10)
            yield begin, end
            begin = end - overlap

    def _snapped(self, end: int, reach: int) -> int:
        """Return the end nearest to `end` behind a line, else behind a sentence, else `end`."""
        first = end - reach
        window = self.tokens(first, min(end + reach, self.n_tokens))
        pieces = [self._tokenizer.token_bytes(token) for token in window]
        best = min(
            ((not _ends_line(piece), abs(first + i + 1 - end), first + i + 1)
             for i, piece in enumerate(pieces) if _ends_line(piece) or _SENTENCE_END.search(piece)),
            default=None,
        )  # fmt: skip
        return end if best is None else best[2]


def _ends_line(piece: bytes) -> bool:
    return piece.endswith(b"\n")


def _pieces(tokenizer: Tokenizer, parts: Iterable[str]) -> Iterator[str]:
    rest = ""
    for part in parts:
        for begin in range(0, len(part), PIECE_CHARS):
            rest += part[begin : begin + PIECE_CHARS]
            while len(rest) >= 2 * PIECE_CHARS:
                cut = _cut(tokenizer, rest)
                yield rest[:cut]
                rest = rest[cut:]
    if rest:
        yield rest


def _cut(tokenizer: Tokenizer, text: str) -> int:
    """Return where the first piece of `text` may end, at or after PIECE_CHARS."""
    for match in _CUT.finditer(text, PIECE_CHARS, len(text) - 1):
        at = match.start()
        left, right = text[at - _WITNESS_CHARS : at], text[at : at + _WITNESS_CHARS]
        apart = [*_ids(tokenizer, left), *_ids(tokenizer, right)]
        if apart == _ids(tokenizer, left + right):
            return at
    raise ConfigError(
        f"the text has a stretch of {PIECE_CHARS:,} characters without a space or line end between "
        "words; it cannot be read piece by piece"
    )


def _ids(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    return tokenizer.encode(text, add_special=False)
