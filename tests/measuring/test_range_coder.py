"""The range coder: what goes in comes out, and costs what it should."""

import math

from hypothesis import given
from hypothesis import strategies as st

from capax.measuring.range_coder import TOTAL_BITS, RangeDecoder, RangeEncoder

TOTAL = 1 << TOTAL_BITS


@st.composite
def intervals(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Intervals of every width, at every place; the narrowest and the widest often."""
    result = []
    for _ in range(draw(st.integers(0, 60))):
        width = draw(st.sampled_from([1, 2, TOTAL - 1, TOTAL]) | st.integers(1, TOTAL))
        start = draw(st.sampled_from([0, TOTAL - width]) | st.integers(0, TOTAL - width))
        result.append((start, width))
    return result


@given(intervals())
def test_decoding_finds_every_interval_again(coded: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    for start, width in coded:
        encoder.encode(start, width)
    decoder = RangeDecoder(encoder.finish())
    for start, width in coded:
        assert start <= decoder.target() < start + width
        decoder.accept(start, width)


@given(intervals())
def test_the_size_is_the_information(coded: list[tuple[int, int]]) -> None:
    encoder = RangeEncoder()
    for start, width in coded:
        encoder.encode(start, width)
    information = sum(TOTAL_BITS - math.log2(width) for _, width in coded)
    # Zeros at the end are left out, so the size may also be smaller.
    assert 8 * len(encoder.finish()) <= information + 1e-6 * len(coded) + 16


def test_a_carry_runs_through_settled_bytes() -> None:
    # Just below a border for long, then above it: every 0xFF written so far turns over.
    encoder = RangeEncoder()
    coded = [(TOTAL // 2 - 1, 2), *[(TOTAL // 2 - 1, 2)] * 20, (TOTAL - 1, 1)]
    for start, width in coded:
        encoder.encode(start, width)
    decoder = RangeDecoder(encoder.finish())
    for start, width in coded:
        assert start <= decoder.target() < start + width
        decoder.accept(start, width)


@given(st.binary(max_size=40), intervals())
def test_any_bytes_decode_to_something(data: bytes, coded: list[tuple[int, int]]) -> None:
    decoder = RangeDecoder(data)
    for _ in coded:
        target = decoder.target()
        assert 0 <= target < TOTAL
        decoder.accept(target, 1)
