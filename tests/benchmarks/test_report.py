"""The README's table is made from the measured file, and says so when an aim is missed."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ABOUT = {
    "measured": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789ab",
    "threads": 2,
    "rounds": 5,
    "model": {"name": "tiny.gguf", "bytes": 98_000_000},
    "machine": {
        "cpu": "A Processor",
        "cpu_family_model": "1/2",
        "isa": ["avx2", "fma"],
        "memory_bytes": 8 * 2**30,
        "busy_share_before": 0.02,
    },
    "packages": {"llama-cpp-python": "1", "ctranslate2": "2", "transformers": "3"},
}


def rate(median: float) -> dict[str, Any]:
    return {"tokens_per_second": {"min": median - 1, "median": median, "max": median + 2}}


def experiments() -> dict[str, Any]:
    engines = {"capax": rate(600.0), "llama_cpp_q4_1": rate(200.0), "llama_cpp_q4_0": rate(300.0)}
    return {
        "decode": ABOUT | {"n_tokens": 64, "depth": 0, "engines": engines},
        "memory": ABOUT
        | {
            "context": 2048,
            "peak_rss_bytes": {"capax": 230 * 2**20, "llama_cpp_q4_1": 240 * 2**20},
            "capax_over_file_and_kv_bytes": 61 * 2**20,
        },
    }


def test_ratios_are_of_medians() -> None:
    rows = list(report.decode_rows(experiments()["decode"]))
    assert [row.result for row in rows] == ["3.00 ×", "2.00 ×"]
    assert all(row.met for row in rows)


def test_a_missed_aim_is_said() -> None:
    measured = experiments()
    measured["decode"]["engines"]["capax"] = rate(599.0)
    assert report.table(experiments()).count("| not reached |") == 1
    assert report.table(measured).count("| not reached |") == 3


def test_the_table_names_machine_date_and_commit() -> None:
    text = report.table(experiments())
    for fact in ("tiny.gguf", "2 threads", "A Processor", "8 GiB", "2026-01-02", "0123456789ab"):
        assert fact in text


def test_a_busy_machine_is_said() -> None:
    measured = copy.deepcopy(experiments())
    assert "busy" not in report.table(measured)
    measured["memory"]["machine"]["busy_share_before"] = 0.35
    assert "Others kept up to 35% of the cores busy" in report.table(measured)


def test_insert_replaces_only_what_is_between_the_markers() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.insert(page, "new")
    assert once == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.insert(once, "new") == once


@pytest.mark.parametrize("page", ["", report.BEGIN, f"{report.END} {report.BEGIN}"])
def test_a_page_without_both_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        report.insert(page, "new")


def test_the_picture_needs_no_display(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = copy.deepcopy(experiments())
    report.draw(measured, tmp_path / "engine.png")
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def test_pages_get_a_picture_that_they_can_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    (tmp_path / "engine.json").write_text(json.dumps({"experiments": experiments()}))
    picture = tmp_path / "docs" / "images" / "engine.png"
    arguments = ["report", "--results", str(tmp_path), "--page", str(page), str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert report.main() == 0
    assert "(images/engine.png)" in page.read_text()
    assert picture.exists()
    assert (tmp_path / "engine.png").exists()


def test_scoring_joins_the_engines_table(tmp_path: Path) -> None:
    engines = {"capax": rate(2700.0), "llama_cpp_q4_1": rate(300.0)}
    scoring = ABOUT | {"n_tokens": 1024, "engines": engines}
    for name, found in (("engine", experiments()), ("scoring", {"scoring": scoring})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"experiments": found}))
    rows = [line for line in report.table(report.engine_experiments(tmp_path)).splitlines()
            if "log-probabilities of a text of 1,024 tokens" in line]  # fmt: skip
    assert len(rows) == 1
    assert "**9.00 ×** | ≥ 8.0 × | reached" in rows[0]
