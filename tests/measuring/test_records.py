import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import ConfigError, FileFormatError, StoreError
from capax.measuring.compare import OTHER_MACHINE, compare
from capax.measuring.records import (
    MAX_RECORD_NBYTES,
    Data,
    Figure,
    Peer,
    Record,
    find,
    list_records,
    now,
    prepare_folder,
    read_record,
    write_record,
)
from tests.measuring.recorded import record


def test_a_record_comes_back(tmp_path: Path) -> None:
    written = record(figures=(Figure(name="a", value=1.5, peer=Peer(name="xz", value=3.0)),))
    path = write_record(tmp_path, written)
    assert path.name == f"20260102T030405Z-perplexity-{written.id}.json"
    assert read_record(path) == written
    write_record(tmp_path, written)
    assert len(list_records(tmp_path).found) == 1


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_id_is_of_the_content(a: str, b: str) -> None:
    try:
        first, second = record(a).id, record(b).id
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert (first == second) == (a == b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match="a of a perplexity record is not finite"):
        write_record(tmp_path, record(figures=(Figure(name="a", value=value),)))
    with pytest.raises(ConfigError, match="not finite"):
        write_record(
            tmp_path, record(figures=(Figure(name="a", value=1.0, interval=(0.0, value)),))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no record"),
        (b"[1]", "is no record"),
        (b'{"schema": "capax.record/1", "kind": "x"}', "missing required field"),
        (b"\xff\xfe", "is no record"),
        (b"[" * 100_000, "is no record"),
        (b" " * (MAX_RECORD_NBYTES + 1), "more than 4 MiB"),
        (
            msgspec.json.encode(record()).replace(b"capax.record/1", b"capax.record/9"),
            "has schema 'capax.record/9'",
        ),
        (
            msgspec.json.encode(record()).replace(b'"kind"', b'"extra":1,"kind"'),
            "unknown field `extra`",
        ),
        (
            msgspec.json.encode(record()).replace(b'"value":2.0', b'"value":1e999'),
            "is no record",
        ),
    ],
)
def test_hostile_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_record(path)


def test_listing_names_damaged_records_and_leaves_other_files_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    kept = write_record(tmp_path / "deep", record())
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "broken.json").write_bytes(kept.read_bytes()[:200])
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for ever
    listing = list_records(tmp_path)
    assert [found.path for found in listing.found] == [kept]
    assert len(listing.damaged) == 1
    assert "broken.json is no record" in listing.damaged[0]
    with pytest.raises(StoreError, match="there is no folder"):
        list_records(tmp_path / "nowhere")


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    for day in (3, 1, 2):
        write_record(tmp_path, record(time=f"2026-01-0{day}T00:00:00Z"))
    times = [found.record.time for found in list_records(tmp_path).found]
    assert times == sorted(times)
    assert find(list_records(tmp_path).found, "last").record.time == "2026-01-03T00:00:00Z"


def test_find_wants_one(tmp_path: Path) -> None:
    for name in "abcdefghijklmnopqr":
        write_record(tmp_path, record(name))
    found = list_records(tmp_path).found
    assert find(found, found[3].record.id) == found[3]
    with pytest.raises(ConfigError, match="is the beginning of 18 records"):
        find(found, "")
    with pytest.raises(ConfigError, match="there is no record 'xyz' among 18"):
        find(found, "xyz")


def test_a_folder_that_cannot_be_made_is_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot create the folder"):
        prepare_folder(tmp_path / "file" / "below")


def test_comparable_records_have_ratios_and_intervals() -> None:
    result = compare([record(value=2.0), record("big", 1.0, method={"weights": "Q8_0"})])
    assert not result.obstacles
    assert [row.key for row in result.differs] == [
        "model", "model.digest", "method.weights", "method.kv",
    ]  # fmt: skip
    perplexity, speed = result.rows
    assert perplexity.values == (2.0, 1.0)
    assert perplexity.ratios == (None, 0.5)
    assert perplexity.note == "intervals apart"
    assert compare([record(value=2.0), record("big", 2.3)]).rows[0].note == "intervals overlap"
    assert speed.ratios == (None, 1.0)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (record(kind="capacity"), "kind"),
        (record(seed=0), "seed"),
        (record(data=Data(name="text.txt", digest="e" * 64)), "data"),
        (record(settings={"context": 65, "windows": None}), "settings.context"),
        (record(settings={"context": "64", "windows": None}), "settings.context"),
        (record(settings={"context": 64}), None),  # missing and None are the same: not given
        (record(data=Data(name="renamed", digest="d" * 64)), None),
    ],
)
def test_what_must_be_equal(other: Record, key: str | None) -> None:
    assert [row.key for row in compare([record(), other]).obstacles] == ([key] if key else [])


def test_times_of_other_machines_are_not_compared() -> None:
    result = compare([record(), record(machine={"cpu": "two", "threads": 2})])
    perplexity, speed = result.rows
    assert perplexity.ratios == (None, 1.0)
    assert speed.note == OTHER_MACHINE
    assert speed.ratios == (None, None)


def test_a_missing_figure_has_no_ratio() -> None:
    row = compare([record(value=None), record()]).rows[0]
    assert row.values == (None, 2.0)
    assert row.ratios == (None, None)
    assert json.dumps(compare([record(), record(figures=())]).as_dict())


def test_equal_measurements_of_one_second_are_two_records(tmp_path: Path) -> None:
    paths = {
        write_record(tmp_path, msgspec.structs.replace(record(), time=now())) for _ in range(5)
    }
    assert len(paths) == 5
    assert all(re.fullmatch(r"\d{8}T\d{6}Z-.*\.json", path.name) for path in paths)
    listed = list_records(tmp_path)
    assert len(listed.found) == 5
    assert [each.record.time for each in listed.found] == sorted(
        each.record.time for each in listed.found
    )
