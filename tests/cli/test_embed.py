"""`capax embed`: arguments, standard input, and a NumPy file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from capax import LLM, Embedder
from capax.cli.main import cli
from capax.errors import ContextLengthError
from tests.models import bert_model, hf_model


def test_texts_become_json_lines_and_a_numpy_file_of_the_same_numbers(tmp_path: Path) -> None:
    expected = Embedder(bert_model()).embed(["then", "and there"])
    arguments = ["embed", str(bert_model())]
    given = CliRunner().invoke(cli, [*arguments, "then", "and there"])
    piped = CliRunner().invoke(cli, arguments, input="then\nand there\n")
    assert given.exit_code == 0, given.output
    assert given.stdout == piped.stdout
    lines = [json.loads(line) for line in given.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["then", "and there"]
    assert np.array_equal(np.array([x["embedding"] for x in lines], np.float32), expected)
    file = tmp_path / "vectors.npy"
    done = CliRunner().invoke(cli, [*arguments, "-o", str(file), "then", "and there"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert np.array_equal(np.load(file), expected)


def test_a_model_that_writes_embeds_too() -> None:
    done = CliRunner().invoke(cli, ["embed", str(hf_model("llama")), "rain"])
    assert done.exit_code == 0, done.output
    vector = np.array(json.loads(done.stdout)["embedding"], np.float32)
    assert np.array_equal(vector, LLM(hf_model("llama")).embed("rain")[0])


def test_nothing_is_cut_unless_asked_for() -> None:
    arguments = ["embed", str(bert_model()), "e " * 700]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, ContextLengthError)
    assert "702 tokens" in str(done.exception)
    assert CliRunner().invoke(cli, [*arguments, "--truncate", "600"]).exit_code == 0


def test_plan_names_the_command_that_comes_next() -> None:
    done = CliRunner().invoke(cli, ["plan", str(bert_model())])
    assert "capax embed" in done.stderr
