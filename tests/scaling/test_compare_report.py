"""The page of a comparison: figures at equal tokens, everything escaped, nothing loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capax.files.page import Table, page
from capax.scaling.compare_report import (
    accuracy_at,
    equal_tokens,
    family_of,
    frontier_area,
    write_comparison,
)
from capax.scaling.comparing import Row


def row(strategy: str, tokens: float, accuracy: float, *, is_best: bool = False) -> Row:
    return Row(strategy, 100, 40, accuracy, 0.05, tokens, tokens / 2, 2.0, is_best)


def test_between_points_accuracy_is_linear_in_log_tokens() -> None:
    points = [(1000.0, 0.9), (10.0, 0.1), (100.0, 0.5)]
    assert accuracy_at(points, 10) == pytest.approx(0.1)
    assert accuracy_at(points, 1000) == pytest.approx(0.9)
    assert accuracy_at(points, 10**1.5) == pytest.approx(0.3)
    assert accuracy_at(points, 9.9) is None
    assert accuracy_at(points, 1001) is None
    assert accuracy_at([(10, 0.2), (10, 0.4)], 10) == 0.4
    assert accuracy_at([(10, 0.2)], 10) == 0.2
    assert accuracy_at([], 10) is None


def test_the_area_is_of_the_best_for_at_most_so_many_tokens() -> None:
    rows = [row("a", 10, 0.2), row("b", 100, 0.1), row("a", 1000, 0.9)]
    assert frontier_area(rows) == pytest.approx(0.2)
    rows = [row("a", 10, 0.2), row("b", 100, 0.6), row("a", 1000, 0.9)]
    assert frontier_area(rows) == pytest.approx(0.4)
    assert frontier_area([row("a", 10, 0.2)]) == 0.2
    assert frontier_area([row("a", 0, 0.0), row("a", 10, 0.2)]) == 0.2
    assert frontier_area([row("a", 0, 0.0)]) == 0.0
    assert frontier_area([row("a", 10, 0.2), row("b", 10, 0.3)]) == 0.3


@pytest.mark.parametrize(
    ("strategy", "family"),
    [
        ("single", "single"),
        ("majority:n=8", "majority"),
        ("majority:n=8,votes=marked,marks=1/2/3/4/5", "majority:votes=marked"),
        ("revise:n=3,k=4", "revise"),
        ("truncate:tokens=8,cue=so", "truncate:cue=so"),
    ],
)
def test_a_family_is_a_strategy_without_its_price(strategy: str, family: str) -> None:
    assert family_of(strategy) == family


def test_budgets_are_those_that_two_families_span() -> None:
    rows = [row("a:n=1", 10, 0.1), row("a:n=9", 1000, 0.5), row("single", 5, 0.3)]
    assert equal_tokens(rows) == ([], {})
    rows += [row("b:n=1", 100, 0.2), row("b:n=2", 10_000, 0.6)]
    budgets, found = equal_tokens(rows)
    assert (budgets[0], budgets[-1]) == (100, 1000)
    assert set(found) == {"a", "b"}
    assert found["a"][0] == pytest.approx(0.3)
    assert found["b"][-1] == pytest.approx(0.4)
    rows += [row("a:n=0", 0, 0.0), row("b:n=0", 0, 0.0)]
    assert equal_tokens(rows) == (budgets, found)
    apart = [row("a:n=1", 1, 0.1), row("a:n=2", 2, 0.1), row("b:n=1", 3, 0.1), row("b:n=2", 4, 0.1)]
    assert equal_tokens(apart) == ([], {})


def test_the_page_shows_rows_and_settings(tmp_path: Path) -> None:
    folder = tmp_path / "<b>bold<"
    folder.mkdir()
    config = {"model": "<script>alert(1)</script>", "seed": 3}
    rows = [row("single", 10, 0.25, is_best=True), row("majority:n=2", 1000, 0.5)]
    write_comparison(folder, config, rows, b"<svg/>")
    results = json.loads((folder / "results.json").read_text())
    assert [row["acc,none"] for row in results["results"].values()] == [0.25, 0.5]
    assert [c["strategy"] for c in results["configs"].values()] == ["single", "majority:n=2"]
    assert (folder / "plots" / "compare.svg").read_bytes() == b"<svg/>"
    text = (folder / "report.html").read_text()
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in text
    assert text.count('class="best"') == 1
    assert "25.0%" in text
    for outside in ("http:", "https:", "url(", "<link", "@import"):
        assert outside not in text


def test_a_page_without_a_picture_has_none() -> None:
    text = page("t", "s", [Table(("a",), [("1",)])], json.dumps({}))
    assert "<img" not in text
    assert "<h2>Settings</h2>" in text
