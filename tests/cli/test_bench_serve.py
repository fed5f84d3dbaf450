"""`capax bench serve` against the real application with a tiny model, and against nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from capax import LLM
from capax.cli import bench_serve, main
from capax.cli.main import cli
from capax.errors import ConfigError, EndpointError
from capax.measuring.records import list_records
from tests.models import gguf_model
from tests.serving.conftest import LiveServer, live


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live(LLM(gguf_model("llama"), threads=1, n_sequences=8)) as running:
        yield running


SMALL = ["--num-prompts", "6", "--max-prompt-len", "20", "--max-output-len", "8", "--ignore-eos"]


def test_the_summary_and_the_file_have_the_same_numbers(server: LiveServer, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["bench", "serve", "--base-url", server.base_url, *SMALL, "--request-rate", "100",
         "--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--metadata", "a=b",
         "--metric-percentiles", "50,99", "--goodput", "ttft:60000"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    [file] = tmp_path.iterdir()
    document = json.loads(file.read_text())
    assert (document["completed"], document["failed"], document["a"]) == (6, 0, "b")
    assert document["model_id"] == "tiny"
    assert document["request_goodput"] == document["request_throughput"]
    assert document["total_output_tokens"] == sum(document["output_lens"])
    lines = done.stdout.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert f"P50 TTFT (ms):{'':26} {document['p50_ttft_ms']:<10.2f}" in lines
    assert "of a core" in done.stderr


def test_the_same_seed_asks_the_same(server: LiveServer) -> None:
    def texts(seed: str) -> list[str]:
        done = CliRunner().invoke(
            cli,
            ["bench", "serve", "--base-url", server.base_url, *SMALL, "--backend", "openai-chat",
             "--seed", seed, "--json", "--save-detailed", "--result-filename", "/dev/null"],
        )  # fmt: skip
        document = json.loads(done.stdout)
        assert document["failed"] == 0
        return list(document["generated_texts"])

    assert texts("1") == texts("1") != texts("2")


def test_a_server_that_refuses_everything_is_a_failure(
    server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "serve", "--base-url", server.base_url, *SMALL, "--model", "other"]
    assert main.run(arguments) == 1
    assert "6 failed: HTTP 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--base-url", "http://127.0.0.1:9", "--ready-check-timeout-sec", "0.01"],
         EndpointError, "not ready"),
        (["--base-url", "nonsense"], ConfigError, "http://host:port"),
        (["--goodput", "ttft"], ConfigError, "ttft:500"),
        (["--goodput", "itl:5"], ConfigError, "ttft:500"),
        (["--metadata", "x"], ConfigError, "KEY=VALUE"),
        (["--endpoint", "x\r\nEvil: 1"], ConfigError, "is no path"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    arguments: list[str], error: type[Exception], message: str
) -> None:
    done = CliRunner().invoke(cli, ["bench", "serve", *arguments])
    assert isinstance(done.exception, error)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    "arguments",
    [["--request-rate", "0"], ["--request-rate", "x"], ["--percentile-metrics", "ttft,x"],
     ["--metric-percentiles", "101"], ["--num-prompts", "0"], ["--burstiness", "0"]],
)  # fmt: skip
def test_misuse_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["bench", "serve", *arguments]).exit_code == 2


def test_bench_still_takes_a_model() -> None:
    done = CliRunner().invoke(cli, ["bench", "serv"])
    assert "no model 'serv'" in str(done.exception)


def test_the_first_of_several_keys_is_sent() -> None:
    assert bench_serve._first_key("one two") == "one"
    assert bench_serve._first_key(" ") is None
    assert bench_serve._first_key(None) is None


def test_a_record_is_kept_if_asked_for(server: LiveServer, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["bench", "serve", "--base-url", server.base_url, *SMALL, "--record", str(tmp_path)],
    )
    assert done.exit_code == 0, done.output
    (found,) = list_records(tmp_path).found
    record = found.record
    assert (record.kind, record.model.name, record.seed) == ("bench serve", "tiny", 0)
    assert record.settings["request_rate"] == "inf"
    completed, wait = record.figure("completed"), record.figure("mean_ttft_ms")
    assert completed is not None
    assert wait is not None
    assert (completed.value, completed.higher_is_better) == (6, True)
    assert (wait.unit, wait.higher_is_better, wait.of_machine) == ("ms", False, True)
