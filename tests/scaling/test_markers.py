"""Markers are counted as words, and right is compared with wrong within problems."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from capax.decoding.params import SamplingParams
from capax.errors import ConfigError
from capax.scaling.markers import (
    FEATURES,
    Traces,
    count_markers,
    features_of,
    marker_report,
    read_traces,
)
from capax.scaling.run_directory import RunDirectory, Sample
from capax.scaling.sampling import SamplePlan, verify
from tests.scaling.scripted import sums


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Perhaps it is 4, I think. It COULD BE 5.", (3, 0, 0)),
        ("Wait, let me see. Let's see: hold on; double-check!", (0, 5, 0)),
        ("Let\N{RIGHT SINGLE QUOTATION MARK}s see", (0, 1, 0)),
        ("So then, in conclusion, 4. Therefore 5", (0, 0, 4)),
        ("sophisticated waiters mightily thence", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_markers_are_whole_words_without_case(text: str, counts: tuple[int, int, int]) -> None:
    assert count_markers(text) == counts


def test_features_are_a_length_and_rates_of_it() -> None:
    assert features_of("wait, so it is maybe 4").tolist() == pytest.approx([6, *[1000 / 6] * 3])
    assert features_of("so", 10).tolist() == [10, 0, 0, 100]
    assert features_of("").tolist() == [1, 0, 0, 0]


def traces(
    rows: list[tuple[str, float, bool]], capped: list[bool] | None = None,
    sources: list[str] | None = None,
) -> Traces:  # fmt: skip
    """Samples of (problem, length, is right)."""
    features = np.zeros((len(rows), 4))
    features[:, 0] = [length for _, length, _ in rows]
    return Traces(
        np.array([name for name, _, _ in rows]), features, np.array([right for *_, right in rows]),
        np.array(capped or [False] * len(rows)), np.array(sources or [""] * len(rows)),
        np.zeros(3, np.int64),
    )  # fmt: skip


def test_hard_problems_that_are_longer_are_no_effect_of_length() -> None:
    """Simpson: pooled, wrong ones are longer; within each problem lengths are alike."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(200):
        is_hard = i % 2 == 0
        for _ in range(16):
            length = rng.integers(90, 110) + 100 * is_hard
            rows.append((f"p{i}", float(length), bool(rng.random() < (0.2 if is_hard else 0.8))))
    found = marker_report(traces(rows))
    assert found.pooled["length"].delta < -0.3
    assert found.pooled["length"].p < 1e-9
    assert found.within["length"].verdict == "no effect"
    assert abs(found.within["length"].delta) < 0.05


@pytest.mark.parametrize(("shift", "verdict"), [(-20, "less"), (20, "more")])
def test_an_effect_within_problems_is_found(shift: int, verdict: str) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(60):
        for j in range(8):
            right = j % 2 == 0
            rows.append((f"p{i}", 100 + shift * right + float(rng.normal(0, 30)), right))
    found = marker_report(traces(rows)).within["length"]
    assert found.verdict == verdict
    assert found.n_problems == 60
    assert found.mean == pytest.approx(shift, abs=8)


def test_samples_cut_off_make_no_effect_by_themselves() -> None:
    rng = np.random.default_rng(2)
    rows, capped = [], []
    for i in range(60):
        for _ in range(8):
            length = float(rng.integers(50, 150))
            cut = length > 130
            rows.append((f"p{i}", 130.0 if cut else length, not cut and bool(rng.random() < 0.6)))
            capped.append(cut)
    data = traces(rows, capped)
    assert marker_report(data).within["length"].verdict == "no effect"
    assert marker_report(data).n_capped == sum(capped)
    assert marker_report(data, with_capped=True).within["length"].verdict == "less"


def test_a_marker_that_does_not_occur_has_no_effect_of_its_model() -> None:
    """One word in one text moves its model's mean, and with it each of the model's texts."""
    rows, sources = [], []
    for i in range(60):
        rows += [(f"p{i}", 10.0, True), (f"p{i}", 10.0 + i % 3, False)]
        sources += ["good", "bad"]
    data = traces(rows, sources=sources)
    data.features[1, 2] = 30.0
    found = marker_report(data).by_source
    assert found["thinking"].verdict == "no effect"
    assert found["thinking"].p > 0.5
    assert set(found) == set(FEATURES)


def test_only_right_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="all 2 samples that ended are right"):
        marker_report(traces([("a", 1.0, True), ("b", 2.0, True)]))


def test_a_run_and_a_file_of_its_samples_say_the_same(tmp_path: Path) -> None:
    problems, path = sums(3), tmp_path / "run"
    plan = SamplePlan(4, SamplingParams(max_tokens=9), choices=4)
    lines = []
    with RunDirectory(path, plan.settings(problems, "none")) as run:
        for task in problems:
            for i in reversed(range(4)):
                text = f"so {task.reference}" if i % 2 else "wait, maybe 99"
                reason = "length" if i == 0 else "stop"
                run.add_samples([Sample(task.id, i, 0, 3, 5 + i, reason, text)])
                lines.append({
                    "id": task.id, "text": text, "correct": i % 2 == 1, "tokens": 5 + i,
                    "capped": i == 0,
                })  # fmt: skip
        verify(run, problems)
        run.set_status("success", problems={t.id: t.checker.name for t in problems})
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert marker_report(read_traces(path)) == marker_report(read_traces(file))
    assert read_traces(path).n_markers.tolist() == [6, 6, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no line"),
        ('{"id": 1}\n', "line 1 is no sample"),
        ('{"id": 1, "text": "", "correct": 1}\n', "line 1 is no sample"),
        ("\xff\n", "line 1 is no sample"),
        (
            '{"id": 1, "text": "a", "correct": true}\n'
            '{"id": 1, "text": "a", "correct": true, "tokens": 3}\n',
            "some samples have a length",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_traces(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_traces(tmp_path / "none")
