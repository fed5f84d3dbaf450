"""Events come out the same however their bytes were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import EndpointError
from capax.measuring.load import sse
from capax.measuring.load.sse import EventParser

STREAM = (
    '\ufeff: keep-alive\n\ndata: {"a": 1}\n\nevent: x\ndata: two\ndata:lines \r\n\r\n'
    "data\n\nid: 7\n\ndata:  Grüße 火\r\rdata: \n\n: bye\n\ndata: [DONE]\r\n\r\n"
).encode()
EVENTS = [
    b'{"a": 1}', b"two\nlines ", b"", " Grüße 火".encode(), b"", b"[DONE]",
]  # fmt: skip


def parsed(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_the_whole_stream() -> None:
    assert parsed(STREAM) == EVENTS


def test_split_at_every_byte() -> None:
    for cut in range(len(STREAM) + 1):
        assert parsed(STREAM[:cut], STREAM[cut:]) == EVENTS, cut


def test_byte_by_byte_with_empty_reads_between() -> None:
    pieces = [piece for i in range(len(STREAM)) for piece in (STREAM[i : i + 1], b"")]
    assert parsed(*pieces) == EVENTS


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_split_anywhere(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STREAM)]
    assert parsed(*(STREAM[a:b] for a, b in pairwise(at))) == EVENTS


@given(texts=st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))))
def test_any_text_survives(texts: list[str]) -> None:
    stream = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    assert parsed(stream) == [text.encode() for text in texts]


def test_an_event_is_given_as_soon_as_it_ends() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r\n\r") == [b"a"]
    assert parser.feed(b"\ndata: b\n") == []
    assert not parser.is_at_end
    assert parser.feed(b"\n") == [b"b"]
    assert parser.is_at_end


def test_an_event_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_NBYTES", 100)
    parser = EventParser()
    for _ in range(50):
        parser.feed(b"data: 0123456789\n\n")  # each is small
    for _ in range(6):
        parser.feed(b"data: 0123456789")
    with pytest.raises(EndpointError, match="more than 100 bytes"):
        parser.feed(b"data: 0123456789")
