"""Cells survive any stop, and a file of other settings is not gone on with."""

from pathlib import Path

import pytest

from capax.errors import ConfigError, StoreError
from capax.measuring.cells import Cells, opened

SETTINGS = {"context": 64, "depths": (1, 2)}
ROWS = {("speed", "f16", 1): {"seconds": [0.5]}, ("speed", "f32", 1): {"seconds": [0.25]}}


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cells.jsonl"
    with opened(path, SETTINGS) as cells:
        cells.add(ROWS)
    with opened(path, SETTINGS) as cells:
        assert ("speed", "f32", 1) in cells
        assert cells["speed", "f16", 1] == {"seconds": [0.5]}
        assert ("speed", "f32", 2) not in cells


@pytest.mark.parametrize("n_cut", range(1, 60, 7))
def test_a_torn_last_line_is_made_again(tmp_path: Path, n_cut: int) -> None:
    path = tmp_path / "cells.jsonl"
    with opened(path, SETTINGS) as cells:
        cells.add(ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-n_cut])
    with opened(path, SETTINGS) as cells:
        assert ("speed", "f16", 1) in cells
        assert ("speed", "f32", 1) not in cells
        cells.add({("speed", "f32", 1): {"seconds": [0.25]}})
    assert path.read_bytes() == whole


def test_a_torn_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_bytes(b'{"format":"capax')
    with opened(path, SETTINGS) as cells:
        cells.add(ROWS)
    with opened(path, SETTINGS) as cells:
        assert ("speed", "f16", 1) in cells


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    with opened(path, SETTINGS):
        pass
    with (
        pytest.raises(ConfigError, match="another context, seed"),
        opened(path, {"seed": 1} | {"context": 65, "depths": (1, 2)}),
    ):
        pass
    for content, message in ((b'{"a":1}\n', "no file of measured cells"), (b"[\n", "is damaged")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message), opened(path, SETTINGS):
            pass
    with pytest.raises(StoreError, match="cannot be written"), opened(tmp_path, SETTINGS):
        pass


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    with (
        opened(path, SETTINGS),
        pytest.raises(StoreError, match="by another process"),
        opened(path, SETTINGS),
    ):
        pass


def test_without_a_file_cells_are_kept_in_memory() -> None:
    cells = Cells()
    cells.add(ROWS)
    assert cells["speed", "f32", 1] == {"seconds": [0.25]}
