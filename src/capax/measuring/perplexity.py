"""Perplexity: how many tokens, on average, the model would have to guess among.

The tokenised text is cut into consecutive windows that do not overlap; in each, every token
but the first is scored given those before it. PPL = exp(mean negative log-likelihood).
A model that asks for BOS gets one at the head of each window, which then is the token that
is not scored. Windows are independent, so only one is in memory at a time; tokens that do
not fill a last window are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from capax.errors import CapaxError, ConfigError

MIN_WINDOW = 2


class TokenScores(Protocol):
    """What scoring one window gives: natural log-probabilities, None for the first token."""

    @property
    def logprobs(self) -> list[float | None]: ...


class Scorer(Protocol):
    """Anything that scores token ids, such as `LLM`."""

    def score(self, texts: Sequence[int], /) -> TokenScores: ...


class TokenBytes(Protocol):
    """What a tokenizer must know here."""

    @property
    def add_bos(self) -> bool: ...
    @property
    def bos_id(self) -> int | None: ...
    def encode(self, text: str, add_special: bool = True) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass
class Tally:
    """Sums over the tokens scored so far; the figures are properties of them."""

    n_tokens: int = 0
    n_bytes: int = 0
    nll: float = 0.0  # sum of negative natural log-likelihoods
    nll_squared: float = field(default=0.0, repr=False)

    def add(self, logprobs: Iterable[float], n_bytes: int) -> None:
        """Count scored tokens that stand for `n_bytes` bytes of text."""
        for logprob in logprobs:
            self.n_tokens += 1
            self.nll -= logprob
            self.nll_squared += logprob * logprob
        self.n_bytes += n_bytes

    @property
    def nll_per_token(self) -> float:
        return self.nll / self.n_tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits that coding the text with the model takes per byte; comparable across tokenizers."""
        return self.nll / math.log(2) / self.n_bytes if self.n_bytes else math.nan

    @property
    def standard_error(self) -> float:
        """Uncertainty of the perplexity, taking the tokens as independent (llama.cpp's figure)."""
        if self.n_tokens < 2:
            return math.nan
        variance = self.nll_squared / self.n_tokens - self.nll_per_token**2
        return self.perplexity * math.sqrt(max(variance, 0.0) / (self.n_tokens - 1))


def windows_of(
    text: str, tokenizer: TokenBytes, context: int, limit: int | None = None
) -> list[list[int]]:
    """Cut the tokens of `text` into windows of `context` tokens, BOS included where wanted.

    `limit`: at most so many windows. Raises ConfigError if the text does not fill one.
    """
    if context < MIN_WINDOW:
        raise ConfigError(f"context is {context}; a window needs at least {MIN_WINDOW} tokens")
    ids = tokenizer.encode(text, add_special=False)
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = context - len(head)
    n = len(ids) // step
    if n == 0:
        raise ConfigError(
            f"the text has {len(ids):,} tokens, which do not fill a window of {context:,}; "
            "give a longer text or a smaller --context"
        )
    n = n if limit is None else min(n, limit)
    return [head + ids[i * step : (i + 1) * step] for i in range(n)]


def perplexity(
    scorer: Scorer, tokenizer: TokenBytes, windows: Iterable[Sequence[int]]
) -> Iterator[Tally]:
    """Score one window after another; yields the tally so far (one object, growing).

    Raises CapaxError if the model gives a log-probability that is not finite.
    """
    tally = Tally()
    for number, window in enumerate(windows, 1):
        scored = [x for x in scorer.score(window).logprobs[1:] if x is not None]
        if len(scored) != len(window) - 1 or not all(map(math.isfinite, scored)):
            raise CapaxError(
                f"window {number} has a token without finite log-probability: the model file may "
                "be damaged, run 'capax pull --verify' on it"
            )
        tally.add(scored, sum(len(tokenizer.token_bytes(token)) for token in window[1:]))
        yield tally
