"""`capax measure kv` on a tiny model, as a user meets it."""

import json
import os
from pathlib import Path

import pytest

from capax.cli import main
from capax.cli.measure_kv import split_methods
from tests.models import gguf_model

TEXT = " ".join(f"The {w} river ran past the mill, and {w} boats went by." for w in "abcdefgh" * 9)
SMALL = ["--context", "128", "--chunks", "1", "--depths", "16", "--bursts", "2", "--needles", "1"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name in list(os.environ):
        if name.startswith(("CAPAX_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT)
    model = str(gguf_model("llama", encoding="Q8_0"))
    return ["measure", "kv", model, "--text", str(tmp_path / "text.txt"), *SMALL]


def test_a_comma_before_an_option_belongs_to_the_method() -> None:
    assert split_methods("full, xquant:bits=4,group=64,int8,") == [
        "full", "xquant:bits=4,group=64", "int8",
    ]  # fmt: skip
    assert split_methods("kivi:bits=2, base-layers=3") == ["kivi:bits=2,base-layers=3"]
    assert split_methods(" , ") == []


def test_the_table_and_the_run_directory(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command += ["-o", str(out), "--methods", "f16,kivi:bits=2,block=64"]
    assert main.run(command) == 0
    table = capsys.readouterr().out
    head, _, *lines = table.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "method", "bytes/token", "of f16", "PPL", "KL", "95 %", "top-1", "t/s @ 16", "pass key",
        "4 needles",
    ]  # fmt: skip
    names = [line.split("|")[1].strip() for line in lines[:-1]]
    assert names == ["f32", "f16", "kivi:bits=2,block=64", "kivi:bits=2,keys_axis=token"]
    assert lines[-1] == "kivi:bits=2,keys_axis=token is the control of kivi:bits=2,block=64"
    document = json.loads((out / "summary.json").read_text())
    assert document["settings"]["context"] == 128
    assert (out / "picture.png").exists()
    assert main.run([*command, "--json"]) == 0  # nothing is measured again: not even the speeds
    again = json.loads(capsys.readouterr().out)
    assert again["methods"] == document["methods"]
    full, coded = document["methods"][1:3]
    assert full["name"] == "f16"
    assert set(full["bytes_per_token"]) == {"pages"}
    assert set(coded["bytes_per_token"]) == {"codes", "scales", "window"}
    assert coded["prediction_error"] < 0.01
    assert coded["control_of"] == []
    assert main.run([*command, "--seed", "1"]) == 1
    assert "was begun with seed 0, not 1" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cells.jsonl").touch()
    assert main.run([*command, "-o", str(tmp_path / "old")]) == 1
    assert "was begun by an older capax" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--methods", "f16,no-such"], 2, "'no-such' is unknown; use one of f32"),
        (["--methods", ","], 2, "no method is named"),
        (["--methods", "kivi:bits=5"], 2, "use 2, 3, 4 or 8"),
        (["--methods", "kivi:group=7"], 1, "KV method 'kivi:group=7': kivi does not fit"),
        (["--context", "100000"], 1, "the model's context is"),
        (["--memory", "1MiB"], 3, "needs at least"),
        (["--context", "2", "--needles", "1"], 1, "hides nothing"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    command: list[str],
    flags: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run([*command, *flags]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_encoders_have_no_cache(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models import bert_model

    command[2] = str(bert_model())
    assert main.run(command) == 1
    assert "is an encoder, which has no KV cache" in capsys.readouterr().err
