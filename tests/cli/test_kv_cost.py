"""`capax kv cost` on a tiny model."""

import json

import pytest

from capax.cli import main
from tests.models import gguf_model


def test_parts_and_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["kv", "cost", str(gguf_model("llama")), "--kv", "xquant:bits=3,cross_layer=on"]
    assert main.run(command) == 0
    text = capsys.readouterr().out
    for part in ("codes", "scales", "accumulator", "T* on an H100"):
        assert part in text
    for figure in ("0.1328", "0.1045", "0.0762", "1,853", "35,32", "4,41"):
        assert figure in text
    assert main.run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["stored_and_live_of_f16"] > report["stored_of_f16"]


def test_other_methods_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["kv", "cost", str(gguf_model("llama")), "--kv", "int8"]) != 0
    assert "use xquant" in capsys.readouterr().err
