"""Thinking and answer, told apart whatever pieces they come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.decoding.constraint import ConstraintCompiler
from capax.decoding.structured import StructuredOutputs
from capax.files.describe import load_tokenizer
from capax.files.model_file import open_model
from capax.serving.reasoning import Splitter, Start, after_thinking, start_of
from tests.models import VOCAB_SIZE, gguf_model

TOKENIZER = load_tokenizer(open_model(gguf_model("llama")))


def split(start: Start, pieces: list[str]) -> tuple[str, str]:
    splitter = Splitter(start)
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    return (
        "".join(part.text for part in parts if part.is_reasoning),
        "".join(part.text for part in parts if not part.is_reasoning),
    )


@pytest.mark.parametrize(
    ("start", "text", "reasoning", "content"),
    [
        (Start.FREE, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (Start.FREE, "\n<think>a</think>b", "a", "b"),
        (Start.FREE, "<think>\n\n</think>\n\nYes.", "", "Yes."),
        (Start.FREE, "Yes <think>no</think>", "", "Yes <think>no</think>"),
        (Start.FREE, "<thin ice", "", "<thin ice"),
        (Start.FREE, "<think>never ends", "never ends", ""),
        (Start.THINKING, "a\n\nb </thin> c\n</think>\nYes.\n", "a\n\nb </thin> c", "Yes.\n"),
        (Start.THINKING, "a</think>", "a", ""),
        (Start.CONTENT, "<think>a</think>", "", "<think>a</think>"),
        (Start.FREE, "", "", ""),
    ],
)
def test_the_parts_are_the_same_in_any_pieces(
    start: Start, text: str, reasoning: str, content: str
) -> None:
    for size in (1, 2, 5, max(len(text), 1)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert split(start, pieces) == (reasoning, content)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<", "/", "t", "\n", "a", "</thi"]), max_size=9
    ),
    st.sampled_from(list(Start)),
)
def test_pieces_never_matter(parts: list[str], start: Start) -> None:
    text = "".join(parts)
    assert split(start, [text]) == split(start, list(text))


def test_the_prompt_says_where_the_answer_begins() -> None:
    def start(template: str, prompt: str) -> Start:
        return start_of(TOKENIZER, template, TOKENIZER.encode(prompt, add_special=False))

    assert start("plain", "x <think>") is Start.CONTENT
    assert start("<think></think>", "user: hi\nassistant:\n") is Start.FREE
    assert start("<think></think>", "assistant:\n<think>\n") is Start.THINKING
    assert start("<think></think>", "assistant:\n<think>\n\n</think>\n\n") is Start.CONTENT


def test_a_form_holds_after_the_thinking_which_no_end_can_skip() -> None:
    compiler = ConstraintCompiler(TOKENIZER, VOCAB_SIZE)
    try:
        inner = compiler.compile(StructuredOutputs(choice=["yes"]))
    finally:
        compiler.close()
    state = after_thinking(inner, TOKENIZER, VOCAB_SIZE, Start.THINKING)()

    def allowed() -> set[int]:
        words = state.mask()
        assert words is not None
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return {int(token) for token in np.flatnonzero(bits)}

    for token in TOKENIZER.encode("so </think>", add_special=False):
        assert token in allowed()
        assert not allowed() & TOKENIZER.eos_ids
        assert not state.accept(token)
    first, *rest = TOKENIZER.encode("yes", add_special=False)
    assert first in allowed()
    assert TOKENIZER.encode("n", add_special=False)[0] not in allowed()
    assert [state.accept(token) for token in (first, *rest)][-1]
