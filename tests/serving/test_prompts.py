"""Counting the tokens of hostile texts without holding them all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import LLM
from capax.serving import prompts

PIECES = st.sampled_from(
    ["a", " the", "rain ", "\n", "火", "🌧", "<|im_end|>", "e\u0301", "7", "  "]
)


@given(parts=st.lists(PIECES, max_size=60), slice_chars=st.integers(1, 12))
def test_a_text_has_at_least_what_is_counted(
    tiny_llm: LLM, parts: list[str], slice_chars: int
) -> None:
    text, tokenizer = "".join(parts), tiny_llm.tokenizer
    n_tokens = len(tokenizer.encode(text, add_special=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts, "SLICE_CHARS", slice_chars)
        assert prompts.least_tokens(tokenizer, text, 10**9) <= n_tokens
        patch.setattr(prompts, "SLICE_SLACK", -1000)  # the check must be able to fail
        if len(text) > slice_chars:
            assert prompts.least_tokens(tokenizer, text, 10**9) > n_tokens


def test_counting_stops_when_it_is_enough(tiny_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    encode = tiny_llm.tokenizer.encode

    def spy(text: str, **options: bool) -> list[int]:
        counted.append(len(text))
        return encode(text, **options)

    monkeypatch.setattr(tiny_llm.tokenizer, "encode", spy)
    n_tokens = prompts.least_tokens(tiny_llm.tokenizer, "7 " * 1_000_000, 512)
    assert n_tokens > 512
    assert counted == [prompts.SLICE_CHARS]
