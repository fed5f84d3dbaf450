"""Every command that makes a run directory: what lies in it, and what must never."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from capax.cli import main
from capax.files.run_folder import read_manifest
from tests.models import gguf_model

TEXT = " ".join(f"The {w} river ran past the mill, and {w} boats went by." for w in "abcdefgh" * 9)
SECRETS = ("sk-very-secret", "hunter2")
FACTS = {"kind", "status", "config", "command", "versions", "git", "hardware", "model", "seeds",
         "limits", "started", "ended"}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("CAPAX_", "XDG_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    rows = [{"id": f"t{i}", "prompt": f"{i} then", "reference": "7"} for i in range(2)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def commands(model: str, home: Path) -> dict[str, list[str]]:
    tasks, text = str(home / "tasks.jsonl"), str(home / "text.txt")
    procbench = ["--tasks", "Rotate", "--steps", "2", "--per-cell", "1", "--max-tokens", "4"]
    return {
        "samples": ["scale", "sample", model, tasks, "--checker", "numeric", "-N", "2", "-n", "4"],
        "rounds": ["scale", "rounds", model, tasks, "--checker", "numeric", "--rounds", "2",
                   "--chains", "1", "-n", "4"],
        "comparison": ["scale", "compare", model, tasks, "--checker", "numeric", "-s", "single",
                       "-n", "4"],
        "procbench": ["measure", "procbench", model, *procbench, "--record", "none"],
        "kv": ["measure", "kv", model, "-f", text, "--methods", "f16", "-c", "64", "--chunks", "1",
               "--depths", "0", "--needles", "0", "--no-controls", "--record", "none"],
        "sweep": ["measure", "sweep", model, text, "-e", "original,Q4_0", "-c", "32"],
    }  # fmt: skip


def model_of(kind: str) -> Path:
    return gguf_model("llama", max_position_embeddings=4096 if kind == "procbench" else 512)


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def search(out: Path, *wanted: str) -> None:
    files = [file for file in out.rglob("*") if file.is_file() and file.suffix != ".gguf"]
    assert len(files) >= 4
    for file in files:
        content = file.read_bytes()
        for text in wanted:
            assert text.encode() not in content, f"{text} is in {file}"


@pytest.mark.parametrize("kind", list(commands("", Path())))
def test_a_run_directory_has_all_its_parts(kind: str, home: Path) -> None:
    model, out = model_of(kind), home / "out"
    command = [*commands(str(model), home)[kind], "-o", str(out)]
    assert main.run([*command, "-t", "1"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest.keys() >= FACTS
    assert (manifest["format"], manifest["kind"], manifest["status"]) == (2, kind, "success")
    assert manifest["limits"]["threads"] == 1
    assert manifest["hardware"].keys() >= {"cpu", "isa", "memory_bytes", "physical_cores"}
    assert manifest["model"]["files"].keys() == {model.name}
    assert len(manifest["model"]["files"][model.name]) == 64
    assert "template_sha256" in manifest["model"]
    assert manifest["git"].keys() == {"working_directory", "capax"}
    log = events(out)
    assert (log[0]["event"], log[-1]["event"]) == ("began", "ended")
    assert log[-1]["status"] == "success"
    results = json.loads((out / "results.json").read_text())
    assert results["results"].keys() == results["configs"].keys() == results["n-samples"].keys()
    names = {file.name for file in out.iterdir()}
    assert {"report.md", "report.html", "plots"} <= names
    assert list((out / "plots").glob("*.svg"))
    if kind != "comparison":  # its samples are its cells'
        assert (out / "samples.jsonl").read_bytes().endswith(b"\n")
    search(out, str(home), str(model.parent))
    assert main.run([*command, "-t", "1"]) == 0
    assert [e["event"] for e in events(out) if e["event"] not in ("progress", "measured")] == [
        "began", "ended", "went on", "ended",
    ]  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers 7 to everything; /broken answers nothing."""

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(size))
        if "broken" in self.path:
            self.send_response(400)
            self.end_headers()
            return
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        choices = [
            {"index": i, "text": "7", "message": {"role": "assistant", "content": "7"},
             "finish_reason": "stop"}
            for i in range(asked.get("n") or 1)
        ]  # fmt: skip
        body = json.dumps({"id": "a", "model": "m", "choices": choices, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize("part", ["v1", "broken"])
@pytest.mark.parametrize("kind", ["samples", "rounds", "comparison", "procbench"])
def test_no_key_and_no_place_gets_into_any_file(
    kind: str, part: str, home: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = home / "out"
    url = f"http://user:{SECRETS[1]}@{server}/{part}?key={SECRETS[0]}"
    code = main.run([*commands("m", home)[kind], "-o", str(out), "--base-url", url,
                     f"--api-key={SECRETS[0]}"])  # fmt: skip
    assert code == (0 if part == "v1" else 1), capsys.readouterr().err
    manifest = read_manifest(out)
    assert manifest["status"] == ("success" if part == "v1" else "error")
    assert manifest["model"]["base_url"] == f"http://{server}/{part}"
    if part == "broken":
        assert events(out)[-1] == {**events(out)[-1], "status": "error", "error": "ConfigError"}
    search(out, *SECRETS, str(home))


def test_a_run_says_which_commit_it_was_made_at(home: Path) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "init", "-q", "."], check=True
    )
    subprocess.run(["git", "add", "tasks.jsonl"], check=True)
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "tasks"], check=True
    )
    command = [*commands(str(model_of("samples")), home)["samples"], "-o", "out"]
    assert main.run(command) == 0
    before = read_manifest(home / "out")["git"]["working_directory"]
    assert len(before["commit"]) == 40
    assert before["is_dirty"] is False
    with (home / "tasks.jsonl").open("a") as stream:
        stream.write("\n")
    assert main.run(command) == 0
    assert read_manifest(home / "out")["git"]["working_directory"] == {**before, "is_dirty": True}
    went_on = next(event for event in events(home / "out") if event["event"] == "went on")
    assert went_on["changed"] == ["git.working_directory.is_dirty"]


def test_runs_of_samples_and_of_strategies_are_compared(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(model_of("samples"))
    command = commands(model, home)["samples"]
    assert main.run([*command, "-o", "one"]) == 0
    assert main.run([*command, "-o", "two", "--temp", "0.9", "--top-p", "0.5"]) == 0
    assert main.run(["measure", "compare", "one", "one"]) == 0
    capsys.readouterr()
    assert main.run(["measure", "compare", "one", "two"]) == 1
    shown = capsys.readouterr()
    assert "settings.temperature" in shown.out
    assert "settings.temperature, settings.top_p" in shown.err
    strategies = [*commands(model, home)["comparison"], "-s", "majority:n=2", "-o", "three"]
    assert main.run(strategies) == 0
    assert main.run(["measure", "compare", "three"]) == 0
    assert "method.strategy" in capsys.readouterr().out
    assert main.run([*command, "-o", "one", "--temp", "0.9", "--seed", "3"]) == 1
    message = capsys.readouterr().err
    assert "was begun with sampling" in message
    assert "seed 0, not 3" in message


def test_without_out_a_run_goes_to_a_new_folder_below_runs(home: Path) -> None:
    for kind, name in (("rounds", "tasks-rounds"), ("comparison", "tasks-compare")):
        assert main.run(commands(str(model_of(kind)), home)[kind]) == 0
        (made,) = (home / "runs").glob(f"*-{name}-????????")
        assert read_manifest(made)["kind"] == kind


def test_a_plan_of_a_run_has_its_cost_in_seconds(
    home: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served = ["--base-url", f"http://{server}/v1"]
    for kind in ("samples", "rounds"):
        assert main.run([*commands("m", home)[kind], "-o", kind, *served]) == 0
    capsys.readouterr()
    assert main.run(["scale", "plan", "samples", "--compare", "rounds", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["expected_seconds"] > 0
    assert len(plan["compare"]) == 12  # by the tokens of both runs
    assert main.run(["scale", "plan", "rounds", "--mode", "sequential"]) == 0
    text = capsys.readouterr().out
    assert "s each" in text
    assert "round 2: " in text
    assert "3 tokens read, 1 new" in text
