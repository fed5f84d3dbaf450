"""A run that is killed at any moment and continued has the records of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.test_main import environment
from tests.models import gguf_model

N_TASKS, N_SAMPLES = 12, 60


def command(tasks: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "capax", "scale", "sample", str(gguf_model("llama")), str(tasks),
        "--samples", str(N_SAMPLES), "--choices", "4", "--concurrency", "3", "-n", "40",
        "--temp", "1.2", "--ignore-eos", "--threads", "1", "--out", str(out),
    ]  # fmt: skip


def records(run: Path, name: str = "samples") -> list[bytes]:
    return sorted((run / f"{name}.jsonl").read_bytes().splitlines(keepends=True))


def n_lines(run: Path) -> int:
    file = run / "samples.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_kill_9_and_resume_gives_the_same_records(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    rows = [
        {"id": f"t{i}", "prompt": f"{i} and then", "reference": "e", "checker": "exact"}
        for i in range(N_TASKS)
    ]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = environment(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tasks, whole), env=env, check=True, capture_output=True, timeout=100)
    assert n_lines(whole) == N_TASKS * N_SAMPLES

    n_kills = 0
    for at_least in (1, N_TASKS * N_SAMPLES // 2):
        process = subprocess.Popen(command(tasks, killed), env=env, stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 60
        while n_lines(killed) < at_least and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        n_kills += process.wait() == -signal.SIGKILL
        if n_kills == 1:  # as if the last line had been written half
            os.truncate(killed / "samples.jsonl", (killed / "samples.jsonl").stat().st_size - 7)
    assert n_kills == 2
    assert n_lines(killed) < N_TASKS * N_SAMPLES
    assert json.loads((killed / "manifest.json").read_text())["status"] == "started"

    subprocess.run(command(tasks, killed), env=env, check=True, capture_output=True, timeout=100)
    for name in ("samples", "verdicts"):
        assert records(killed, name) == records(whole, name)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (whole, killed)]
    assert manifests[0]["config"] == manifests[1]["config"]
    assert [manifest["status"] for manifest in manifests] == ["success", "success"]
