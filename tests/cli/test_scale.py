"""`capax scale` on a tiny model, as a user meets it."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capax.cli.run_facts import publishable
from capax.decoding.params import SamplingParams
from capax.scaling.run_directory import RunDirectory, Sample
from capax.scaling.sampling import SamplePlan, verify
from tests.cli.test_main import capax, environment
from tests.models import gguf_model
from tests.scaling.scripted import sums


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    file = tmp_path / "tasks.jsonl"
    rows = [{"id": f"t{i}", "prompt": f"{i} then", "reference": "7"} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four problems with 0, 1, 4 and 8 right ones of 8 samples."""
    path, problems = tmp_path / "run", sums(4)
    plan = SamplePlan(8, SamplingParams(max_tokens=4), choices=8)
    with RunDirectory(path, plan.settings(problems, "none")) as writer:
        for task, n_right in zip(problems, (0, 1, 4, 8), strict=True):
            writer.add_samples(
                Sample(task.id, i, 0, 4, 3, "stop", task.reference if i < n_right else f"9{i}")
                for i in range(8)
            )
        verify(writer, problems)
        writer.set_status("success", n=8, problems={t.id: t.checker.name for t in problems})
    return path


def test_sampling_and_continuing(tmp_path: Path, tasks: Path) -> None:
    arguments = ("scale", "sample", str(gguf_model("llama")), str(tasks), "--checker", "numeric",
                 "-n", "6", "--out", str(tmp_path / "out"), "--json")  # fmt: skip
    first = capax(tmp_path, *arguments, "-N", "4")
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["n_samples"] == 12
    again = json.loads(capax(tmp_path, *arguments, "-N", "6").stdout)
    assert again["n_samples"] == 18
    other = capax(tmp_path, *arguments, "-N", "6", "--seed", "1")
    assert other.returncode == 1
    assert "was begun with seed 0, not 1" in other.stderr
    limited = capax(tmp_path, *arguments, "-N", "600", "--max-total-tokens", "200")
    assert json.loads(limited.stdout)["status"] == "limited"
    assert limited.returncode == 4  # finished partly; the same command goes on


def test_a_bad_task_is_named(tmp_path: Path, tasks: Path) -> None:
    result = capax(tmp_path, "scale", "sample", "no-model", str(tasks))
    assert result.returncode == 1
    assert "tasks.jsonl line 1 is no task: it names no checker" in result.stderr


def test_coverage_of_a_run(tmp_path: Path, run: Path) -> None:
    picture = tmp_path / "curve.png"
    result = capax(tmp_path, "scale", "coverage", str(run), "--k", "1,2,8", "--fit",
                   "--forecast", "100", "--at-coverage", "0.7", "--plot", str(picture),
                   "--json")  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [p["coverage"] for p in report["coverage"]] == pytest.approx(
        [13 / 32, (2 / 8 + 1 - 6 / 28 + 1) / 4, 3 / 4]
    )
    assert [p["stderr"] is None for p in report["coverage"]] == [False, False, True]
    assert report["majority"][2]["accuracy"] == pytest.approx((1 / 8 + 1 + 1) / 4)
    assert report["unsolved"] == 1
    assert report["mean_new_tokens"] == 3
    assert report["samples_needed"] == 7
    assert [law["space"] for law in report["fits"]] == ["log", "coverage"]
    assert report["forecasts"][0]["coverage"] > 0.7
    assert struct.unpack(">II", picture.read_bytes()[16:24]) > (400, 200)


def test_the_table_is_for_people(tmp_path: Path, run: Path) -> None:
    result = capax(tmp_path, "scale", "coverage", str(run), "--at-coverage", "0.9")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("4 problems, 32 samples (")
    assert lines[2].split()[:2] == ["1", "0.4062"]
    assert lines[-1] == "coverage 0.9 takes more samples than there are"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--k", "0"), 2, "no list of whole numbers"),
        (("--k", "9"), 1, "k is 9 but must be 1 to 8"),
        (("--at-coverage", "0"), 2, "not in the range"),
        (("--plot", "curve.docx"), 1, "cannot be written as a picture"),
    ],
)
def test_wrong_use(
    tmp_path: Path, run: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = capax(tmp_path, "scale", "coverage", str(run), *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_no_run(tmp_path: Path) -> None:
    result = capax(tmp_path, "scale", "coverage", str(tmp_path))
    assert result.returncode == 1
    assert f"is {tmp_path} a run?" in result.stderr


def test_tasks_are_generated_and_listed(tmp_path: Path) -> None:
    listed = capax(tmp_path, "scale", "tasks", "list", "--json")
    sizes = {row["family"]: row["instances"] for row in json.loads(listed.stdout)}
    assert (sizes["3sat"], sizes["tsp"], sizes["calendar"]) == (960, 800, 2000)
    file = tmp_path / "t.jsonl"
    arguments = ("-o", str(file), "--levels", "4-5", "--per-level", "3")
    assert capax(tmp_path, "scale", "tasks", "generate", "tsp", *arguments).returncode == 0
    assert len(file.read_text().splitlines()) == 6
    wrong = capax(tmp_path, "scale", "tasks", "generate", "sudoku", *arguments)
    assert wrong.returncode != 0
    assert "no family of tasks 'sudoku'" in wrong.stderr


def test_a_run_gets_its_reports(tmp_path: Path, run: Path) -> None:
    done = capax(tmp_path, "scale", "report", str(run), "--no-plot")
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["results"]["numeric"]["acc,none"] == pytest.approx((0 + 1 + 4 + 8) / 32)
    assert results["results"]["numeric"]["pass@8,none"] == 0.75
    assert results["n-samples"]["numeric"] == {"original": 4, "effective": 4}
    assert "status success" in (run / "report.html").read_text()
    assert "| 8 | 0.7500 |" in (run / "report.md").read_text()
    written = (run / "samples.jsonl").read_bytes()
    assert capax(tmp_path, "scale", "report", str(run), "--json").returncode == 0
    assert (run / "samples.jsonl").read_bytes() == written
    assert "<svg" in (run / "plots" / "coverage.svg").read_text()
    missing = capax(tmp_path, "scale", "report", str(tmp_path / "none"))
    assert "cannot be read" in missing.stderr
    assert missing.returncode == 1


def test_a_run_is_exported_as_lm_eval_writes(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "results"
    arguments = ("scale", "report", str(run), "--no-plot", "--lm-eval-out", str(out))
    assert capax(tmp_path, *arguments).returncode == 0
    first = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert capax(tmp_path, *arguments).returncode == 0
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == first
    samples, results = sorted(first, key=lambda p: p.name.startswith("results"))
    assert results.parent.name == "none"
    document = json.loads(first[results])
    assert document["model_name"] == "none"
    rows = [json.loads(line) for line in first[samples].splitlines()]
    assert [row["acc"] for row in rows] == [0, 1 / 8, 4 / 8, 1]
    assert [len(row["resps"][0]) for row in rows] == [8] * 4
    mean = document["results"]["numeric"]["acc,none"]
    assert mean == pytest.approx(sum(row["acc"] for row in rows) / 4)


@pytest.mark.slow  # imports the harness
@pytest.mark.filterwarnings("ignore")
def test_the_harness_reads_an_exported_run(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table

    out = tmp_path / "results"
    capax(tmp_path, "scale", "report", str(run), "--no-plot", "--lm-eval-out", str(out))
    names = [str(p) for p in out.rglob("*") if p.is_file()]
    (results,) = get_results_filenames(names)
    assert len(get_sample_results_filenames(names)) == 1
    table = make_table(json.loads(Path(results).read_text()))
    assert "pass@8" in table
    assert "0.7500" in table


@pytest.mark.slow
def test_workers_draw_the_same_samples_and_go_on_after_a_kill(tmp_path: Path, tasks: Path) -> None:
    pytest.importorskip("ray")
    arguments = ("scale", "sample", str(gguf_model("llama")), str(tasks), "--checker", "numeric",
                 "-n", "100", "-N", "160", "--choices", "4", "--ignore-eos")  # fmt: skip

    def samples(folder: str) -> list[str]:
        return sorted((tmp_path / folder / "samples.jsonl").read_text().splitlines())

    assert capax(tmp_path, *arguments, "--out", str(tmp_path / "alone")).returncode == 0
    pooled = (*arguments, "--workers", "2", "--out", str(tmp_path / "pool"))
    process = subprocess.Popen(
        [sys.executable, "-m", "capax", *pooled],
        env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    file = tmp_path / "pool" / "samples.jsonl"
    while process.poll() is None and not (file.exists() and file.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.wait()
    n_before = file.read_bytes().count(b"\n")
    assert 0 < n_before < 3 * 160  # killed at work
    resumed = capax(tmp_path, *pooled)
    assert resumed.returncode == 0, resumed.stderr
    assert samples("pool") == samples("alone")


def test_markers_of_a_run_and_of_a_file(tmp_path: Path, run: Path) -> None:
    result = capax(tmp_path, "scale", "markers", str(run))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("32 samples, 0 cut off and left out; words: 0 hedging")
    assert "problems with right and wrong samples: 2" in result.stdout
    report = json.loads(capax(tmp_path, "scale", "markers", str(run), "--json").stdout)
    assert report["within"]["length"]["verdict"] == "no effect"
    few = capax(tmp_path, "scale", "markers", str(run), "--calibrate")
    assert few.returncode == 1
    assert "10 problems or more" in few.stderr
    file = tmp_path / "texts.jsonl"
    rows = [
        {"id": i, "text": "so it is" + " maybe" * (wrong + j), "correct": not wrong}
        for i in range(60)
        for j in range(3)
        for wrong in (0, 1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = capax(tmp_path, "scale", "markers", str(file), "--calibrate")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1].startswith("majority:n=8,votes=marked,marks=")
    refused = capax(tmp_path, "scale", "markers", str(file), "--k", "2")
    assert "leave it out" in refused.stderr


def test_strategies_are_compared_into_a_page(tmp_path: Path, tasks: Path) -> None:
    out = tmp_path / "compared"
    arguments = ("scale", "compare", str(gguf_model("llama")), str(tasks), "--checker", "numeric",
                 "-s", "single", "-s", "truncate:tokens=3,answer_tokens=2", "-n", "8",
                 "--cap", "40", "--cap", "80", "-o", str(out))  # fmt: skip
    first = capax(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 5
    rows = json.loads((out / "compare.json").read_text())
    assert all(row["tokens"] <= row["cap"] for row in rows)
    text = (out / "report.html").read_text()
    assert "data:image/svg+xml;base64," in text
    assert "truncate:tokens=3,answer_tokens=2" in text
    (out / "report.html").unlink()
    assert capax(tmp_path, *arguments).stdout == first.stdout
    assert (out / "report.html").read_text() == text
    twice = capax(tmp_path, *arguments, "-s", "single")
    assert "a strategy is named twice" in twice.stderr


def test_generated_tasks_from_samples_to_page(tmp_path: Path) -> None:
    model, tasks, run = str(gguf_model("llama")), tmp_path / "t.jsonl", tmp_path / "run"
    made = capax(tmp_path, "scale", "tasks", "generate", "tsp", "--levels", "4,5", "--per-level",
                 "2", "-o", str(tasks))  # fmt: skip
    assert made.returncode == 0, made.stderr
    drawn = capax(tmp_path, "scale", "sample", model, str(tasks), "-N", "2", "-n", "4",
                  "--out", str(run))  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    page = tmp_path / "page.html"
    shown = capax(tmp_path, "scale", "tasks", "report", str(run), str(tasks), "--html", str(page))
    assert shown.returncode == 0, shown.stderr
    assert "<td>all</td><td>4</td>" in page.read_text()
    arguments = ("scale", "tasks", "sequential", model, str(tasks), "--rounds", "2", "-n", "4",
                 "--parallel", str(run), "-o", str(tmp_path / "s.jsonl"), "--json")  # fmt: skip
    first = capax(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    rows = json.loads(first.stdout)
    assert [row["calls"] for row in rows] == [1, 2]
    assert rows[1]["answer_tokens"] == 8
    assert rows[0]["parallel"] == rows[0]["sequential"] == 0
    assert json.loads(capax(tmp_path, *arguments).stdout) == rows


def test_a_plan_becomes_a_page(tmp_path: Path, run: Path) -> None:
    page = tmp_path / "plan.html"
    done = capax(tmp_path, "scale", "plan", str(run), "--html", str(page))
    assert done.returncode == 0, done.stderr
    content = page.read_text()
    assert "<title>Plan from run</title>" in content
    assert "<td>8</td><td>75.00%</td>" in content
    assert "data:image/svg+xml" in content
    assert "<script" not in content


def test_no_key_and_no_place_gets_into_a_run(tmp_path: Path, tasks: Path) -> None:
    """Whatever becomes of the run: a server that is not there, a key in an option or a URL."""
    secrets = ("sk-very-secret", "hunter2")
    for number, given in enumerate((["--api-key", secrets[0]], [f"--api-key={secrets[0]}"])):
        out = tmp_path / f"run{number}"
        capax(tmp_path, "scale", "sample", "m", str(tasks), "--checker", "exact", "-N", "1",
              "--base-url", f"http://user:{secrets[1]}@127.0.0.1:9/v1", *given,
              "--out", str(out))  # fmt: skip
        manifest = (out / "manifest.json").read_text()
        assert '"--base-url"' in manifest
        for file in out.rglob("*"):
            text = file.read_text() if file.is_file() else ""
            assert not any(secret in text for secret in (*secrets, str(tmp_path)))


def test_a_command_line_is_made_publishable() -> None:
    shown = publishable(
        ["/usr/bin/capax", "scale", "sample", "/models/a.gguf", "--api-key", "k", "--api-key=k",
         "--base-url=http://u:p@h:1/v1", "--out=/home/me/run", "-n", "4", "t.jsonl"]
    )  # fmt: skip
    assert shown == [
        "capax", "scale", "sample", "a.gguf", "--api-key", "***", "--api-key=***",
        "--base-url=http://h:1/v1", "--out=run", "-n", "4", "t.jsonl",
    ]  # fmt: skip
