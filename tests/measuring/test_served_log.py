"""Request logs: lines there and back, hostile ones, and bills whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.cli import main
from capax.errors import ConfigError
from capax.measuring.idealized_runtime import RuntimeModel
from capax.measuring.served_log import MAX_LINE_NBYTES, ServedRequest, bill, read_log

MODEL = RuntimeModel({1: 0.02, 64: 0.1, 512: 0.9}, 0.01, 1e-6)


def served(p: int = 64, o: int = 8, slower: float = 1.0, **fields: Any) -> ServedRequest:
    """A request that took `slower` times its idealized runtime; `fields` go before all else."""
    prefill = MODEL.seconds(p, 1, cached=fields.get("cached_tokens", 0)) * slower
    decode = (MODEL.seconds(p, o) - MODEL.seconds(p, 1)) * slower
    values: dict[str, Any] = {
        "time": 1.8e9, "route": "/v1/completions", "model": "tiny", "status": 200, "calls": 1,
        "choices": 1, "prompt_tokens": p, "cached_tokens": 0, "completion_tokens": o,
        "seconds": prefill + decode, "queue_seconds": 0.0, "prefill_seconds": prefill,
        "decode_seconds": decode, "finish_reason": "length",
    }  # fmt: skip
    return ServedRequest(**values | fields)


@given(
    p=st.integers(0, 10**9),
    o=st.integers(0, 10**9),
    seconds=st.floats(0, 1e9),
    time=st.floats(0, 4e9),
    route=st.text(max_size=64),
    reason=st.sampled_from(["stop", "length", "mixed", "cancelled", ""]),
)
def test_a_line_says_what_was_written(
    p: int, o: int, seconds: float, time: float, route: str, reason: str
) -> None:
    request = served(
        time=time, route=route, prompt_tokens=p, completion_tokens=o, seconds=seconds,
        finish_reason=reason,
    )  # fmt: skip
    line = request.to_line()
    assert len(line) <= MAX_LINE_NBYTES
    again = ServedRequest.from_line(line)
    assert again.time == pytest.approx(time, abs=1e-5)
    assert again.seconds == pytest.approx(seconds, abs=1e-6)
    assert (again.prompt_tokens, again.completion_tokens) == (p, o)
    assert (again.route, again.finish_reason) == (route, reason)
    assert again.to_line() == line


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": float("nan")},
        {"seconds": -1},
        {"seconds": "1"},
        {"seconds": 10**400},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": True},
        {"prompt_tokens": 10**10},
        {"cached_tokens": 65},
        {"route": "x" * 65},
        {"model": None},
        {"time": "yesterday"},
        {"time": 5},
        {"time": "0001-01-01T00:00:00"},
        {"finish_reason": []},
    ],
)
def test_lines_that_are_none(change: dict[str, Any]) -> None:
    document = json.loads(served().to_line()) | change
    with pytest.raises(ConfigError, match="line of"):
        ServedRequest.from_line(json.dumps(document).encode())


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 2000, b"{" * 9])
def test_bytes_that_are_no_line(line: bytes) -> None:
    with pytest.raises(ConfigError, match="no line of a request log"):
        ServedRequest.from_line(line)


def test_a_log_is_read_past_what_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "log"
    good = served().to_line()
    path.write_bytes(good + b"x" * 10 * MAX_LINE_NBYTES + b"\n" + good + b"{}\n" + good[:-1])
    assert [r is not None for r in read_log(path)] == [True, False, True, False, True]
    path.write_bytes(b"\n" * 3)
    assert list(read_log(path)) == [None] * 3
    with pytest.raises(ConfigError, match="cannot read the request log"):
        list(read_log(tmp_path / "nowhere"))


# --- bills ----------------------------------------------------------------------------------


def test_a_quiet_server_has_the_ratio_one() -> None:
    log = [served(p, o) for p, o in ((1, 1), (64, 8), (300, 30), (512, 2))]
    found = bill(log, MODEL)
    assert found.ratio == pytest.approx(1)
    assert found.median_error == pytest.approx(0, abs=1e-12)
    queries = [(r.prompt_tokens, r.completion_tokens) for r in log]
    assert found.idealized_s == pytest.approx(MODEL.total_seconds(queries), rel=1e-12)
    assert (found.n_overlapping, found.n_beyond, found.n_cached) == (4, 0, 0)


def test_opposite_errors_hide_in_the_sum_and_show_in_the_median() -> None:
    found = bill([served(slower=0.5), served(slower=1.5)], MODEL)
    assert found.ratio == pytest.approx(1)
    assert found.median_error == pytest.approx((1 + 1 / 3) / 2)


def test_a_cached_prompt_is_priced_by_its_rest() -> None:
    found = bill([served(512, 8, cached_tokens=448)], MODEL)
    assert found.ratio == pytest.approx(1)
    assert found.n_cached == 1
    ignored = MODEL.seconds(512, 8) / found.measured_s
    assert ignored > 5


def test_what_cannot_be_priced_is_counted_by_why() -> None:
    log = [
        served(),
        None,
        served(status=400, calls=0, choices=0, finish_reason=""),
        served(calls=0, choices=0, finish_reason=""),
        served(finish_reason="cancelled"),
        served(finish_reason="error"),
        served(status=500),
        served(calls=2, choices=2),
        served(choices=3, finish_reason="mixed"),
        served(model="other"),
    ]
    found = bill(log, MODEL, "tiny")
    assert len(found.priced) == 1
    assert found.left_out == {
        "lines that are no request": 1,
        "refused before the model": 1,
        "without an answer to write": 1,
        "cancelled": 1,
        "failed": 2,
        "of several calls or choices": 2,
        "of another model": 1,
    }


def test_requests_that_ran_beside_others_are_counted() -> None:
    one = served(time=1000.0, seconds=1.0)
    within = served(time=1000.2, seconds=0.1)
    cancelled = served(time=1000.4, seconds=5.0, finish_reason="cancelled")
    beside_it = served(time=1004.0, seconds=0.5)
    alone = served(time=1006.0, seconds=1.0)
    follows = served(time=1007.0 - 1e-4, seconds=1.0)
    found = bill([alone, beside_it, one, within, cancelled, follows], MODEL)
    assert found.n_overlapping == 3
    assert len(found.priced) == 5


def test_waiting_and_the_fixed_part_are_shown() -> None:
    engine = MODEL.seconds(64, 8)
    log = [served(seconds=engine + 0.5 + 0.002, queue_seconds=0.5) for _ in range(3)]
    found = bill(log, MODEL)
    assert found.waited_s == pytest.approx(1.5)
    assert found.fixed_s == pytest.approx(0.002)
    assert found.ratio == pytest.approx(engine / (engine + 0.502))


def test_logs_that_cannot_be_billed() -> None:
    with pytest.raises(ConfigError, match="it is empty"):
        bill([], MODEL)
    with pytest.raises(ConfigError, match="1 cancelled"):
        bill([served(finish_reason="cancelled")], MODEL)
    with pytest.raises(ConfigError, match="2 models"):
        bill([served(), served(model="other")], MODEL)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, profile = tmp_path / "log.jsonl", tmp_path / "profile.json"
    lines = [served(time=1e9 + i).to_line() for i in range(3)]
    log.write_bytes(b"".join(lines) + served(finish_reason="cancelled").to_line())
    profile.write_text(json.dumps({"tiny": MODEL.to_helm()}))
    command = ["measure", "runtime", "bill", str(log), "--profile", str(profile)]
    assert main.run([*command, "--price", "3600", "--devices", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["requests"] == 3
    assert result["left_out"] == {"cancelled": 1}
    assert result["cost"] == pytest.approx(2 * 3 * MODEL.seconds(64, 8))
    assert result["ratio"] == pytest.approx(1, abs=1e-4)
    assert main.run(command) == 0
    shown = capsys.readouterr().out
    assert "3 priced, 1 left out" in shown
    assert "1.000 idealized over measured" in shown
    assert main.run([*command[:3], str(tmp_path / "none"), *command[4:]]) == 1
    assert "cannot read the request log" in capsys.readouterr().err
