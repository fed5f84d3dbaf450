"""`capax train retention` and `capax kv`: from a text to gates, and a look at them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capax.cli.main import run
from tests.kv.bounded_runs import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Gates of a tiny model, and the text they were trained on."""
    folder = tmp_path_factory.mktemp("train")
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    gates = folder / "g.safetensors"
    small = ["--tokens", "64", "--memory", "8", "--steps", "3", "--recall", "0", "--width", "8"]
    where = [str(tiny("Q8_0")), "-f", str(text), "-o", str(gates)]
    assert run(["train", "retention", *where, *small]) == 0
    return gates, text


def test_training_writes_gates_and_a_log(trained: tuple[Path, Path]) -> None:
    gates, _ = trained
    assert gates.is_file()
    log = gates.with_name("g.safetensors.run") / "log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_inspect_shows_half_lives_and_survivors(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gates, text = trained
    arguments = ["kv", "inspect", str(gates), str(tiny("Q8_0")), "-f", str(text)]
    arguments += ["--tokens", "200", "--memory", "40"]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "half-life in tokens" in out
    assert "who is left, 40 of 200 tokens" in out or "who is left, 48 of 200 tokens" in out
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_tokens"] == 200
    assert all(len(kept) == len(document["survivors"][0][0]) for kept in document["survivors"][0])


def test_a_run_uses_the_gates(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gates, _ = trained
    kv = f"trim:gates={gates},memory=8,buffer=4"
    assert run(["run", str(tiny("Q8_0")), "abc" * 20, "-n", "5", "--kv", kv]) == 0


def test_gates_of_another_model_end_in_one_sentence(
    trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    gates, _ = trained
    assert run(["run", str(tiny("Q4_1")), "abc", "-n", "2", "--kv", f"trim:gates={gates}"]) == 1
    error = capsys.readouterr().err
    assert "were trained for a model with digest" in error
    assert "Traceback" not in error


def test_importing_what_is_no_gate_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "x.safetensors"
    source.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    output = tmp_path / "y.safetensors"
    assert run(["kv", "import-gates", str(source), str(tiny("Q8_0")), "-o", str(output)]) == 1
    assert "blk.0.retention.w1" in capsys.readouterr().err
    assert not output.exists()
