"""The directory of a measurement: how it stands, when it is refused, what a finished one has."""

import asyncio
import json
from pathlib import Path

import pytest

from capax.endpoints import BudgetExceeded
from capax.errors import ConfigError, EndpointError, StoreError
from capax.files.page import Table
from capax.files.run_folder import read_manifest
from capax.measuring.measured_run import MeasuredRun, measured_records
from tests.measuring.recorded import record

SETTINGS = {"model": "m", "mode": "free"}


def opened(path: Path, **settings: str) -> MeasuredRun:
    return MeasuredRun(path, "procbench", {**SETTINGS, **settings}, {"seed": 12})


def events(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (BudgetExceeded("no token is left"), "limited"),
        (EndpointError("the server is gone"), "error"),
        (RuntimeError("a fault"), "error"),
    ],
)
def test_the_manifest_says_how_a_run_ended(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    def fail() -> None:
        with opened(tmp_path):
            assert read_manifest(tmp_path)["status"] == "started"
            raise error

    with pytest.raises(type(error)):
        fail()
    assert read_manifest(tmp_path)["status"] == status
    with pytest.raises(ConfigError, match="not finished"):
        measured_records(tmp_path)


def test_a_finished_run_has_its_record_and_reports(tmp_path: Path) -> None:
    table = Table(("steps", "a|b <i>"), [("2", "0.5")], title="By steps")
    made = record(kind="procbench")

    def draw(path: Path) -> None:
        path.write_text("<svg/>")

    for _ in range(2):  # what is finished may be finished again
        with opened(tmp_path) as run:
            run.samples.touch()
            run.finish([made], "All & sundry.", [table], draw=draw)
    assert read_manifest(tmp_path)["status"] == "success"
    assert read_manifest(tmp_path)["seed"] == 12
    assert measured_records(tmp_path) == [made]
    assert events(tmp_path) == ["began", "ended", "went on", "ended"]
    results = json.loads((tmp_path / "results.json").read_text())
    (metrics,) = results["results"].values()
    assert metrics["perplexity,none"] == 2.0
    text = (tmp_path / "report.md").read_text()
    assert "## By steps\n\n| steps | a\\|b <i> |\n| :--- | ---: |\n| 2 | 0.5 |\n" in text
    page = (tmp_path / "report.html").read_text()
    assert "All &amp; sundry." in page
    assert "<i>" not in page
    assert (tmp_path / "plots" / "curve.svg").read_text() == "<svg/>"


def test_other_settings_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        before = (tmp_path / "manifest.json").read_bytes()
        with pytest.raises(StoreError, match="written by another process"), opened(tmp_path):
            pass
    other = opened(tmp_path, mode="json")
    with pytest.raises(ConfigError, match="begun with mode 'free', not 'json'"), other:
        pass
    assert json.loads(before)["config"] == read_manifest(tmp_path)["config"]


def test_a_torn_line_of_the_log_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.log("answered", done=1)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"time": 17')
    with opened(tmp_path):
        pass
    assert events(tmp_path) == ["began", "answered", "ended", "went on", "ended"]
