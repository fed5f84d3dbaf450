import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import ConfigError
from capax.planning.sizes import (
    GIB,
    MAX_NBYTES,
    MIB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    size_argument,
)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("6G", 6 * GIB),
        ("6GiB", 6 * GIB),
        ("6gib", 6 * GIB),
        ("512MiB", 512 * MIB),
        ("512 MiB", 512 * MIB),
        ("1.5GiB", 3 * GIB // 2),
        ("6GB", 6_000_000_000),
        ("64k", 65_536),
        ("4096", 4096),
        ("4096B", 4096),
        ("2T", 2 << 40),
    ],
)
def test_sizes_read_as_typed(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "value", ["", "six", "-1G", "1e9", "nan", "1GiBs", "0", "99999T", "1.2.3M", True, 1.5, "١G" * 9]
)
def test_nonsense_names_the_value_and_what_it_is_for(value: object) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_size(value, "--memory")  # type: ignore[arg-type]


@given(st.integers(1, MAX_NBYTES))
def test_plain_bytes_are_exact(nbytes: int) -> None:
    assert parse_size(str(nbytes)) == parse_size(nbytes) == nbytes


@given(st.integers(1, MAX_NBYTES - MIB))
def test_a_printed_argument_holds_what_was_asked_and_less_than_a_mib_more(nbytes: int) -> None:
    assert nbytes <= parse_size(size_argument(nbytes)) < nbytes + MIB


@given(st.integers(1024, MAX_NBYTES))
def test_a_printed_size_reads_back_within_one_percent(nbytes: int) -> None:
    assert parse_size(format_size(nbytes)) == pytest.approx(nbytes, rel=0.01)


def test_printed_sizes() -> None:
    assert [format_size(n) for n in (5, 2048, 300 * MIB, 5 * GIB)] == [
        "5 B",
        "2.00 KiB",
        "300 MiB",
        "5.00 GiB",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25), ("10", 10)]
)
def test_durations_read_as_typed(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_duration_without_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fast'"):
        parse_duration("fast")


def test_printed_durations() -> None:
    assert [format_duration(s) for s in (0.85, 12.34, 320, 7500)] == [
        "850 ms",
        "12.3 s",
        "5 m 20 s",
        "2 h 5 m",
    ]
