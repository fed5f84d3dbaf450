"""Perplexity against float64 arithmetic on the same logits, and its windows."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import LLM
from capax.errors import CapaxError, ConfigError
from capax.measuring.perplexity import Tally, perplexity, windows_of
from tests.models import gguf_model

TEXT = "the rain in the hills and the sound of it on the roof, " * 12


class LetterTokenizer:
    """One token per character."""

    def __init__(self, bos_id: int | None = None) -> None:
        self.bos_id = bos_id
        self.add_bos = bos_id is not None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        assert not add_special
        return [ord(c) for c in text]

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


class EvenScorer:
    """Every token is one of `n` equally likely ones."""

    def __init__(self, n: int) -> None:
        self.n = n

    def score(self, texts: Sequence[int], /) -> SimpleNamespace:
        return SimpleNamespace(logprobs=[None] + [-math.log(self.n)] * (len(texts) - 1))


def last(scorer: object, tokenizer: LetterTokenizer, windows: list[list[int]]) -> Tally:
    *_, tally = perplexity(scorer, tokenizer, windows)  # type: ignore[arg-type]
    return tally


@given(st.integers(2, 1000), st.integers(3, 40), st.integers(1, 5))
def test_a_uniform_model_guesses_among_as_many_tokens_as_there_are(
    n: int, context: int, n_windows: int
) -> None:
    windows = windows_of("a" * context * n_windows, LetterTokenizer(), context)
    tally = last(EvenScorer(n), LetterTokenizer(), windows)
    assert tally.perplexity == pytest.approx(n)
    assert tally.n_tokens == n_windows * (context - 1)
    assert tally.bits_per_byte == pytest.approx(math.log2(n))  # one byte per token
    assert tally.standard_error == pytest.approx(0, abs=1e-4 * n)


def test_windows_follow_each_other_without_overlap_and_the_rest_is_left_out() -> None:
    windows = windows_of("abcdefgh", LetterTokenizer(), 3)
    assert ["".join(map(chr, w)) for w in windows] == ["abc", "def"]


def test_bos_heads_every_window_only_if_the_model_asks_for_it() -> None:
    windows = windows_of("abcdefgh", LetterTokenizer(bos_id=42), 3)
    assert [[chr(t) for t in w] for w in windows] == [
        ["*", "a", "b"], ["*", "c", "d"], ["*", "e", "f"], ["*", "g", "h"]
    ]  # fmt: skip


def test_windows_can_be_limited() -> None:
    assert len(windows_of("a" * 100, LetterTokenizer(), 10, limit=3)) == 3


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [("abc", 4, "has 3 tokens, which do not fill a window of 4"), ("abc", 1, "context is 1")],
)
def test_a_text_or_context_too_short_is_named(text: str, context: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        windows_of(text, LetterTokenizer(), context)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, None])
def test_a_token_without_finite_probability_is_an_error(bad: float | None) -> None:
    scorer = SimpleNamespace(score=lambda ids: SimpleNamespace(logprobs=[None, -1.0, bad]))
    with pytest.raises(CapaxError, match="window 1 has a token without finite"):
        last(scorer, LetterTokenizer(), [[1, 2, 3]])


def test_a_real_models_perplexity_is_that_of_its_logits() -> None:
    llm = LLM(gguf_model("llama", encoding="Q8_0"), ctx_size=64, threads=1)
    windows = windows_of(TEXT, llm.tokenizer, 64)
    nll = []
    for window in windows:
        logits = llm.logits(window).astype(np.float64)
        scaled = logits - logits.max(axis=1, keepdims=True)
        logprobs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        nll += [-logprobs[i, token] for i, token in enumerate(window[1:])]
    *_, tally = perplexity(llm, llm.tokenizer, windows)
    assert tally.n_tokens == len(nll)
    assert tally.nll_per_token == pytest.approx(np.mean(nll), rel=1e-6)
    assert tally.standard_error == pytest.approx(
        math.exp(np.mean(nll)) * np.std(nll) / math.sqrt(len(nll) - 1), rel=1e-6
    )
    n_bytes = sum(len(llm.tokenizer.token_bytes(t)) for w in windows for t in w[1:])
    assert tally.n_bytes == n_bytes
