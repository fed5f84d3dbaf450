"""The server's experiments run on a tiny model, and their rows say what was measured."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report, serving, serving_report
from tests.benchmarks.test_report import ABOUT, rate
from tests.benchmarks.test_report import experiments as engine_experiments
from tests.models import gguf_model

SMALL: dict[str, Any] = {
    "CLIENTS": {1: 2, 3: 6},
    "MOST_PROMPT": 16,
    "MOST_ANSWER": 8,
    "HTTP_CLIENTS": 3,
    "HTTP_REQUESTS": 6,
    "PREFIX_WORDS": 60,
    "LONG_WORDS": 100,
    "N_STREAMS": 2,
    "STREAM_TOKENS": 300,
    "LEAST_BEFORE": 3,
    "CONTEXT": 512,
    "SHORT_CONTEXT": 256,
}


def found(median: float) -> dict[str, Any]:
    times = {
        f"{statistic}_{metric}_ms": median
        for statistic in ("median", "p99")
        for metric in ("ttft", "itl")
    }
    return {"output_throughput": 9.0, "request_throughput": 2.0, "request_goodput": 1.0, **times}


def experiments() -> dict[str, Any]:
    engines = {"capax": rate(900.0), "llama_cpp_q4_1": rate(300.0), "capax_alone": rate(200.0)}
    batch = {"n_sequences": 16, "engines": engines}
    figures = {"median": 10.0, "p99": 31.0}
    return {
        "batch_16": ABOUT | batch,
        "batch_64": ABOUT | batch | {"n_sequences": 64},
        "shared_prompt": ABOUT
        | {
            "n_choices": 32,
            "prompt_tokens": 512,
            "shared_seconds": [3.4, 3.5, 3.6],
            "separate_seconds": [10.0, 10.0, 10.0],
        },
        "http": ABOUT
        | {
            "clients": 16,
            "tokens_per_second": {"http": [90.0], "in_process": [100.0]},
            "ratio": 0.9,
        },
        "prefix": ABOUT
        | {"prompt_tokens": 2004, "first_s": [1.0], "second_s": [0.05], "ratio": 0.05},
        "interference": ABOUT
        | {
            "streams": 8,
            "prompt_tokens": 4003,
            "during_ms": figures,
            "quiet_ms": figures,
            "ratio": 3.1,
        },
        "clients": ABOUT
        | {"goals_ms": {"ttft": 1000.0}, "clients": {"1": found(5.0), "64": found(50.0)}},
    }


def test_every_aim_is_judged() -> None:
    text = report.table(experiments(), serving_report.ROWS)
    assert text.count("| reached |") == 5  # batch twice, shared, http, prefix
    assert text.count("| not reached |") == 2  # batch over one sequence, interference
    for shown in ("**4.50 ×**", "**0.35 × its time**", "**0.050 × its time**", "**3.10 ×**"):
        assert shown in text
    assert "50% within TTFT 1,000 ms" in text


def test_pages_get_the_servers_table_and_picture_where_they_have_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    begin, end = serving_report.MARKERS
    pages = []
    for name, place in (("with", f"{begin}\nold\n{end}\n"), ("without", "")):
        page = tmp_path / f"{name}.md"
        page.write_text(f"{report.BEGIN}\n{report.END}\n{place}")
        pages += ["--page", str(page), str(tmp_path / "images" / "engine.png")]
    for name, measured in (("engine", engine_experiments()), ("serving", experiments())):
        (tmp_path / f"{name}.json").write_text(json.dumps({"experiments": measured}))
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(tmp_path), *pages])
    assert report.main() == 0
    text = (tmp_path / "with.md").read_text()
    assert "(images/serving.png)" in text
    assert "old" not in text
    assert "serving" not in (tmp_path / "without.md").read_text()
    assert (tmp_path / "images" / "serving.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(serving.EXPERIMENTS))
def test_every_experiment_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in SMALL.items():
        monkeypatch.setattr(serving, constant, value)
    settings = serving.Settings(gguf_model("llama"), threads=1, rounds=2)
    result = asyncio.run(serving.EXPERIMENTS[name](settings))
    rows = list(serving_report.ROWS[name](ABOUT | result))
    assert all(row.what and row.result for row in rows)
    json.dumps(result)
