"""From texts to the token ids that are embedded, whatever kind of model embeds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from capax.decoding.params import INT32_MAX, Limits, check_number, elements_of, show
from capax.errors import ConfigError, ContextLengthError, FileFormatError
from capax.files.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Text: TypeAlias = str | Sequence[int]
Texts: TypeAlias = Text | Sequence[Text]

_COUNT = Limits(1, INT32_MAX, is_integer=True, may_be_none=True)


class TextTokens:
    """Tokenises texts and holds them to the model's vocabulary and context."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, context_len: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._context_len = context_len

    def ids_of(self, texts: Texts, truncate: int | None = None) -> list[list[int]]:
        """Return the token ids of one text or of each of several.

        `truncate` keeps the beginning of longer texts, and the special token at their end if
        the model puts one there. Raises ConfigError for what is neither text nor token ids.
        """
        check_number("truncate", truncate, _COUNT)
        found = [self._ids(text) for text in _as_list(texts)]
        return [self.cut(ids, truncate) for ids in found] if truncate else found

    def checked(self, index: int, ids: Sequence[int]) -> Ids:
        """Return the ids of text number `index` as int32 [n]; ConfigError names what is wrong."""
        if not len(ids):
            raise ConfigError(f"text {index} is empty; at least one token is needed")
        if len(ids) > self._context_len:
            raise ContextLengthError(
                f"text {index} has {len(ids)} tokens but the model embeds at most "
                f"{self._context_len}; shorten it, or ask for it to be cut"
            )
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise ConfigError(f"text {index} contains {show(token)} but must be token ids")
            if not 0 <= token < self._vocab_size:
                raise ConfigError(
                    f"text {index} has token id {show(token)}, outside the vocabulary of "
                    f"{self._vocab_size:,}"
                )
        return np.asarray(ids, np.int32)

    def _ids(self, text: Text) -> list[int]:
        if isinstance(text, str):
            return self._tokenizer.encode(text)
        return list(elements_of("the text", text))

    def cut(self, ids: list[int], n: int) -> list[int]:
        """Return at most n of the ids, as `ids_of` cuts them."""
        if len(ids) <= n:
            return ids
        ends = self._tokenizer.add_eos and ids[-1] == self._tokenizer.eos_id
        return [*ids[: n - 1], ids[-1]] if ends else ids[:n]


def normalized(vector: npt.NDArray[np.float64]) -> Floats:
    """Return the vector brought to length 1, float32; zeros stay zeros."""
    length = float(np.sqrt(np.dot(vector, vector)))
    return (vector / length if length > 0 else vector).astype(np.float32)


def check_finite(embeddings: Floats) -> None:
    """Raise FileFormatError if an embedding, [n, d], has a number that is none."""
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise FileFormatError(
            f"text {bad[0]} gives numbers that are not finite; the model's weights are damaged, "
            "run 'capax pull' or 'capax verify' with its name"
        )


def _as_list(texts: Any) -> Sequence[Text]:
    """Return several texts; a string or a list of token ids is one."""
    if isinstance(texts, str):
        return [texts]
    several: Sequence[Any] = elements_of("the texts", texts)
    if len(several) and not isinstance(several[0], str | Sequence | np.ndarray):
        return [several]
    return several
