"""However a stream is cut, the joined pieces are the same text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax.errors import ConfigError
from capax.files.detokenize import StopStringMatcher, StreamingDetokenizer
from capax.files.tokenizer import Tokenizer

from .vocabularies import TEXTS, train_byte_level, train_sentencepiece

BYTE_LEVEL = Tokenizer.from_gguf(train_byte_level("smollm").metadata)
SENTENCEPIECE = Tokenizer.from_gguf(train_sentencepiece()[0])
TOKENIZERS = [BYTE_LEVEL, SENTENCEPIECE]


def pieces(detokenizer: StreamingDetokenizer, ids: list[int]) -> list[str]:
    return [*[detokenizer.push(token_id) for token_id in ids], detokenizer.flush()]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_ids_join_to_the_decoded_whole(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    single_bytes = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
    ids = data.draw(
        st.lists(
            st.one_of(st.integers(0, tokenizer.vocab_size - 1), st.sampled_from(single_bytes)),
            max_size=40,
        )
    )
    skip_special, at_start = data.draw(st.booleans()), data.draw(st.booleans())
    stream = StreamingDetokenizer(tokenizer, skip_special=skip_special, at_start=at_start)
    assert "".join(pieces(stream, ids)) == tokenizer.decode(ids, skip_special, at_start)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
def test_whole_text_comes_out_and_no_piece_has_half_a_character(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        if "\ufffd" in text or "▁" in text:
            continue
        ids = tokenizer.encode(text, add_special=False)
        parts = pieces(StreamingDetokenizer(tokenizer, at_start=True), ids)
        assert "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)


def byte_ids(data: bytes) -> list[int]:
    by_bytes = {BYTE_LEVEL.token_bytes(i): i for i in range(BYTE_LEVEL.vocab_size)}
    return [by_bytes[bytes([byte])] for byte in data]


def test_bytes_are_held_only_while_they_can_become_a_character() -> None:
    stream = StreamingDetokenizer(BYTE_LEVEL)
    assert [stream.push(i) for i in byte_ids("é😀".encode())] == ["", "é", "", "", "", "😀"]
    assert [stream.push(i) for i in byte_ids(b"\xf0\x9fA")] == ["", "", "\ufffdA"]
    assert [stream.push(i) for i in byte_ids(b"\xff\x80")] == ["\ufffd", "\ufffd"]
    assert stream.push(byte_ids(b"\xe2")[0]) == ""
    assert stream.flush() == "\ufffd"


def test_the_first_space_is_text_when_a_prompt_comes_before() -> None:
    ids = SENTENCEPIECE.encode("The", add_special=False)
    assert "".join(pieces(StreamingDetokenizer(SENTENCEPIECE), ids)) == " The"
    assert "".join(pieces(StreamingDetokenizer(SENTENCEPIECE, at_start=True), ids)) == "The"


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, by looking at every prefix of the text."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    chunks=st.lists(st.text("ab", max_size=6), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_stop_matcher_equals_its_definition_for_any_chunks(
    chunks: list[str], stops: list[str]
) -> None:
    matcher = StopStringMatcher(stops)
    emitted = ""
    for chunk in chunks:
        text, stopped = matcher.push(chunk)
        emitted += text
        if stopped:
            break
    else:
        emitted += matcher.flush()
    assert (emitted, matcher.stop) == first_stop("".join(chunks), stops)


@given(chunks=st.lists(st.text("abc", max_size=6), max_size=12))
@settings(max_examples=200, deadline=None)
def test_held_text_could_still_become_a_stop_string(chunks: list[str]) -> None:
    stops = ["abca", "bcc"]
    matcher, emitted, seen = StopStringMatcher(stops), "", ""
    for chunk in chunks:
        text, stopped = matcher.push(chunk)
        emitted, seen = emitted + text, seen + chunk
        if stopped:
            return
        held = seen[len(emitted) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_after_a_stop_nothing_more_is_emitted() -> None:
    matcher = StopStringMatcher(["END"])
    assert matcher.push("xE") == ("x", False)
    assert matcher.push("NDmore") == ("", True)
    assert matcher.push("again") == ("", True)
    assert matcher.flush() == ""


def test_without_stop_strings_text_passes_through() -> None:
    assert StopStringMatcher([]).push("abc") == ("abc", False)


@pytest.mark.parametrize("stops", [[""], ["x" * 4097], [str(i) for i in range(65)]])
def test_unreasonable_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(ConfigError, match="stop string"):
        StopStringMatcher(stops)


def test_a_hostile_stop_string_costs_linear_work() -> None:
    """Each character moves the automaton forward once and back at most as often as forward."""
    matcher = StopStringMatcher(["a" * 4000 + "b"])
    for _ in range(100):
        _, stopped = matcher.push("a" * 100)
        assert not stopped
    assert len(matcher.flush()) == 4000
