"""Strings of an array are the same decoded together as one by one."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from capax.files.gguf_format import GGUFArray, ValueType


@given(items=st.lists(st.binary(max_size=6) | st.text(max_size=3).map(str.encode), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_bytes_survive_decoding(items: list[bytes]) -> None:
    raw = b"".join(struct.pack("<Q", len(item)) + item for item in items)
    array = GGUFArray(ValueType.STRING, len(items), raw)
    assert array.to_list() == [item.decode("utf-8", "surrogateescape") for item in items]
    assert array.to_bytes_list() == items
