"""run, chat, bench, perplexity, plan and probe on a tiny model, as a user meets them."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from capax.cli import main
from capax.cli.answer import printable
from capax.cli.bench import NumbersType
from capax.cli.sampling import parse_bias
from capax.errors import ConfigError, StoreError
from capax.files.model_file import open_model
from capax.files.recommended import recommended_sampling
from capax.planning.probe import keep_probe
from tests.cli.test_main import capax, environment
from tests.models import gguf_model, hf_model
from tests.planning.imaginary import PROBE

FIGURES = re.compile(
    r"\[ Prompt: \d+ tok(, \d+ cached)?, [\d.]+ t/s \| Generation: \d+ tok, [\d.]+ t/s \| "
    r"[\d.]+ [MG]iB( of [\d.]+ [MG]iB)? \(plan [\d.]+ MiB\) \]"
)


@pytest.fixture(scope="module")
def model() -> str:
    return str(gguf_model("llama", encoding="Q8_0"))


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("CAPAX_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def with_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = main.run(list(arguments))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document: dict[str, Any] = json.loads(captured.out)
    return document


# --- run -----------------------------------------------------------------------------


def test_run_prints_the_answer_on_stdout_and_the_figures_on_stderr(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", model, "the rain", "-n", "8", "--temp", "0", "--ignore-eos"]
    assert main.run(arguments) == 0
    captured = capsys.readouterr()
    assert "Prompt:" not in captured.out
    assert FIGURES.fullmatch(captured.err.strip().splitlines()[-1])
    document = json_of(capsys, *arguments, "--json")
    assert captured.out == document["text"] + "\n"
    assert document["usage"]["completion_tokens"] == len(document["token_ids"]) == 8


def test_run_says_nothing_but_the_answer_with_q(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["run", model, "the rain", "-n", "4", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_run_uses_the_chat_template_unless_raw(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_ids = json_of(capsys, "run", model, "hi", "-n", "1", "--raw", "--json")
    chat_ids = json_of(capsys, "run", model, "hi", "-n", "1", "--json")
    system_ids = json_of(capsys, "run", model, "hi", "-n", "1", "-s", "be brief", "--json")
    lengths = [len(d["prompt_token_ids"]) for d in (tokenizer_ids, chat_ids, system_ids)]
    assert lengths == sorted(set(lengths))


def test_the_same_seed_gives_the_same_answer_whatever_the_threads(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(seed: int, threads: int) -> list[int]:
        flags = ["-n", "12", "--temp", "1.5", "--seed", str(seed), "-t", str(threads), "--json"]
        ids: list[int] = json_of(capsys, "run", model, "the", "--ignore-eos", *flags)["token_ids"]
        return ids

    assert answer(7, 1) == answer(7, 2)
    assert answer(7, 1) != answer(8, 1)


def test_run_takes_the_prompt_from_a_pipe(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = []
    for arguments in (["-p", "-"], ["-"], []):
        with_stdin(monkeypatch, "the rain ä\n".encode())
        documents.append(json_of(capsys, "run", model, *arguments, "-n", "2", "--json"))
    assert {d["prompt"] for d in documents} == {"the rain ä"}


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "stdin is empty"), (b"a\xffb", "is not UTF-8 at byte 1")]
)
def test_a_prompt_that_is_no_text_is_one_sentence(
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    message: str,
) -> None:
    with_stdin(monkeypatch, data)
    assert main.run(["run", model]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--raw", "--system", "x"],
        ["--raw", "--chat"],
        ["-p", "again"],
        ["-ctk", "f16", "-ctv", "int8"],
        ["--kv", "f16", "-ctk", "int8"],
        ["-ctk", "q4_0"],
        ["--memory", "much"],
        ["-c", "0"],
    ],
)
def test_contradictions_are_misuse(model: str, flags: list[str]) -> None:
    assert main.run(["run", model, "hello", *flags]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logit-bias", "999999+1"], "999999"),
        (["-c", "600"], "context length is 600"),
        (["-n", "512"], "512"),
    ],
)
def test_values_that_cannot_be_are_named(
    model: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main.run(["run", model, "hello", *flags]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-n", "0"], "max_tokens is 0"),
        (["-n", "-2"], "max_tokens is -2"),
        (["--temp", "-1"], "temperature is -1"),
        (["--temp", "nan"], "temperature is nan"),
        (["--top-k", "-2"], "top_k is -2"),
        (["--top-p", "2"], "top_p is 2"),
        (["--min-p", "1.5"], "min_p is 1.5"),
        (["--repeat-penalty", "0"], "repetition_penalty is 0"),
        (["--presence-penalty", "3"], "presence_penalty is 3"),
        (["--frequency-penalty", "-3"], "frequency_penalty is -3"),
        (["--seed", str(1 << 65)], "seed is 36893488147419103232"),
        (["--logit-bias", "x"], "--logit-bias is 'x'"),
        (["--kv", "billion"], "KV cache 'billion' is unknown"),
        (["-ctk", "q3"], "KV cache 'q3' is unknown"),
    ],
)
def test_values_that_no_model_could_take_are_misuse_and_load_nothing(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main.run(["run", "no-such-model", "hello", *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_type_that_is_not_written_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["quantize", "no-such-model", "out.gguf", "Q9"]) == 2
    assert "does not write 'Q9'" in capsys.readouterr().err


def test_a_budget_too_small_exits_with_3_and_three_ways_out_that_hold(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["run", model, "hello", "-n", "1", "--memory", "30MiB"]) == 3
    error = capsys.readouterr().err
    assert "30.00 MiB (budget)" in error
    flags = re.search(r"1\. --memory (\w+)", error)
    assert flags is not None
    assert main.run(["run", model, "hello", "-n", "1", "--memory", flags[1]]) == 0


def test_minus_one_token_means_no_limit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--raw", "-c", "40", "--ignore-eos", "--temp", "0"]
    unlimited = json_of(capsys, "run", model, "hello", *flags, "--json")
    assert (
        json_of(capsys, "run", model, "hello", *flags, "-n", "-1", "--json")["text"]
        == (unlimited["text"])
    )


def test_biased_tokens_win(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-n", "3", "--temp", "0", "--logit-bias", "70+100", "--json"]
    assert json_of(capsys, "run", model, "x", *flags)["token_ids"] == [70, 70, 70]


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-n", "16", "--temp", "0", "--logit-bias", "70+100", "--json"]
    token = json_of(capsys, "run", model, "x", *flags)["text"][0]
    stopped = json_of(capsys, "run", model, "x", *flags, "--stop", token * 3)
    assert stopped["text"] == ""
    assert stopped["finish_reason"] == "stop"


def test_logprobs_are_listed_with_the_best_tokens(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-n", "2", "--temp", "0", "--ignore-eos", "--logprobs", "3"]
    document = json_of(capsys, "run", model, "the", *flags, "--json")
    for entry, token in zip(document["logprobs"], document["token_ids"], strict=True):
        assert entry["token_id"] == token
        assert entry["logprob"] <= 0
    assert main.run(["run", model, "the", *flags]) == 0
    assert len(capsys.readouterr().err.strip().splitlines()) >= 3


def test_verbose_shows_planned_beside_measured(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["run", model, "the", "-n", "2", "-v"]) == 0
    error = capsys.readouterr().err
    for word in ("weights", "kv", "scratch", "total"):
        assert re.search(rf"^{word} +planned +[\d.]+ \w+  measured", error, re.MULTILINE)


def test_an_isa_that_cannot_run_is_an_error(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPAX_ISA", "abacus")
    assert main.run(["run", model, "hello"]) == 1
    assert "CAPAX_ISA is 'abacus'" in capsys.readouterr().err


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[31mb\x07\tc\nd é 漢 🙂") == "a\\x1b[31mb\\x07\tc\nd é 漢 🙂"


@contextmanager
def endless_run(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A 'capax run' that goes on until it is stopped; it does not outlive the test."""
    big = str(gguf_model("llama", encoding="Q8_0", max_position_embeddings=200_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "capax", "run", big, "the", "--ignore-eos", "-n", "150000"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_ends_a_run_with_130_and_no_traceback(tmp_path: Path) -> None:
    with endless_run(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 130
        assert b"Traceback" not in error
        assert b"stopped" in error


def test_a_reader_that_leaves_ends_a_run_silently(tmp_path: Path) -> None:
    with endless_run(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr.read() == b""


# --- sampling defaults ---------------------------------------------------------------


def test_a_models_own_recommendation_comes_before_the_defaults(tmp_path: Path) -> None:
    source = hf_model("llama")
    assert "top_k" not in recommended_sampling(open_model(source))
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = tmp_path / "generation_config.json"
    config.unlink(missing_ok=True)
    config.write_text('{"temperature": 0.3, "top_k": 7, "top_p": "x", "do_sample": true}')
    assert recommended_sampling(open_model(tmp_path)) == {"temperature": 0.3, "top_k": 7}


@pytest.mark.parametrize(
    ("text", "bias"), [("42-1.5", (42, -1.5)), ("42+2", (42, 2.0)), ("7+1e-3", (7, 0.001))]
)
def test_biases_are_read(text: str, bias: tuple[int, float]) -> None:
    assert parse_bias(text) == bias


@pytest.mark.parametrize("text", ["", "42", "-1", "a-1", "42-x", "4-"])
def test_other_biases_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--logit-bias"):
        parse_bias(text)


# --- chat ----------------------------------------------------------------------------


def chat(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> tuple[int, str, str]:
    with_stdin(monkeypatch, text.encode())
    flags = ["-n", "4", "--temp", "0", "--ignore-eos"]
    code = main.run(["chat", model, *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_second_turn_reuses_the_first(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, error = chat(model, capsys, monkeypatch, "the rain\nthe roof\n")
    assert code == 0
    assert out.count("\n") >= 2
    lines = [line for line in error.splitlines() if FIGURES.fullmatch(line)]
    assert len(lines) == 2
    assert "cached" not in lines[0]
    assert "cached" in lines[1]


def test_clear_forgets_and_exit_leaves(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = chat(model, capsys, monkeypatch, "the rain\n")
    code, out, _ = chat(
        model, capsys, monkeypatch, "something else\n/clear\nthe rain\n/exit\nnever said\n"
    )
    assert code == 0
    assert out.endswith(first)


def test_regen_answers_the_last_message_again(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, once, _ = chat(model, capsys, monkeypatch, "the rain\n")
    _, twice, _ = chat(model, capsys, monkeypatch, "the rain\n/regen\n")
    assert twice == 2 * once  # greedy


def test_a_mistake_does_not_end_the_conversation(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "/nope\n/read /nowhere/at/all\n/regen\n" + "word " * 4000 + "\nthe rain\n"
    code, out, error = chat(model, capsys, monkeypatch, text)
    assert code == 0
    assert "there is no command '/nope'" in error
    assert "cannot read '/nowhere/at/all'" in error
    assert "no message to answer again" in error
    assert "the context holds" in error
    assert out == chat(model, capsys, monkeypatch, "the rain\n")[1]


def test_read_puts_a_file_before_the_next_message(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("the hills")
    _, read, _ = chat(model, capsys, monkeypatch, f"/read {tmp_path}/note.txt\nthe rain\n")
    _, typed, _ = chat(model, capsys, monkeypatch, '"""\nthe hills\nthe rain\n"""\n')
    assert read == typed


# --- bench ---------------------------------------------------------------------------


def test_bench_json_has_the_promised_shape(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["-p", "16,32", "-n", "4", "-d", "0,64", "-t", "1", "-r", "2", "--json"]
    document = json_of(capsys, "bench", model, *flags)
    assert document.keys() == {"model", "machine", "results"}
    assert [(r["test"], r["n_tokens"], r["depth"]) for r in document["results"]] == [
        ("prefill", 16, 0), ("prefill", 16, 64), ("prefill", 32, 0), ("prefill", 32, 64),
        ("decode", 4, 0), ("decode", 4, 64),
    ]  # fmt: skip
    for result in document["results"]:
        speed = result["tokens_per_second"]
        assert result.keys() == {
            "test", "n_tokens", "depth", "tokens_per_second", "peak_rss_bytes"
        }  # fmt: skip
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert result["peak_rss_bytes"] > 10 << 20
    assert document["machine"]["threads"] == 1


def test_bench_prints_llama_benchs_columns(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", model, "-p", "8", "-n", "2", "-d", "0,32", "-r", "1"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert rows[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [row[5] for row in rows[2:]] == ["pp8", "pp8 @ d32", "tg2", "tg2 @ d32"]


def test_bench_refuses_more_than_the_context(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["bench", model, "-d", "4096"]) == 1
    assert "context length is 4,608" in capsys.readouterr().err
    assert main.run(["bench", model, "-p", "0", "-n", "0"]) == 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("512", (512,)),
        ("0,4096", (0, 4096)),
        ("1-4", (1, 2, 3, 4)),
        ("1-9+4", (1, 5, 9)),
        ("64-512*2,7", (64, 128, 256, 512, 7)),
    ],
)
def test_lists_and_ranges_are_read_as_llama_bench_does(text: str, numbers: tuple[int, ...]) -> None:
    assert NumbersType().convert(text, None, None) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1-9*1", "0-9*2", "1-99999", "1,,2"])
def test_other_lists_are_misuse(model: str, text: str) -> None:
    assert main.run(["bench", model, f"-p={text}"]) == 2


# --- perplexity ----------------------------------------------------------------------


def test_perplexity_ends_with_the_line_scripts_look_for(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the rain in the hills " * 40)
    flags = ["perplexity", model, "--text", str(tmp_path / "text.txt"), "--context", "32"]
    assert main.run([*flags, "--windows", "3"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"(\[\d\]\d+\.\d{4},){3}\nFinal estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}\n", out
    )
    document = json_of(capsys, *flags, "--windows", "3", "--json")
    assert document.keys() == {"perplexity", "nll_per_token", "n_tokens", "bits_per_byte"}
    assert f"PPL = {document['perplexity']:.4f} " in out
    assert document["n_tokens"] == 3 * 31


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "do not fill a window"), (b"\xff" * 90, "is not UTF-8 at byte 0")],
)
def test_a_text_that_cannot_be_measured_is_one_sentence(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    assert main.run(["perplexity", model, "--text", str(tmp_path / "text.txt")]) == 1
    assert message in capsys.readouterr().err


# --- plan and probe ------------------------------------------------------------------


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was probed before, so that nothing is measured in a test."""
    monkeypatch.setattr("capax.planning.probe.cached_probe", lambda *_: PROBE)


def test_plan_names_every_part_and_fits(
    model: str, capsys: pytest.CaptureFixture[str], probed: None
) -> None:
    document = json_of(capsys, "plan", model, "--memory", "300MiB", "--json")
    assert document["fits"] is True
    assert document["bytes"]["total"] <= document["limit_bytes"] == 300 << 20
    assert document["predicted"]["decode_tokens_per_second"] > 0
    assert document["contexts"][-1]["context_len"] == 512
    assert document["max_context"] == {"f16": 512, "int8": 512}
    assert main.run(["plan", model, "--memory", "300MiB"]) == 0
    captured = capsys.readouterr()
    assert "FITS" in captured.out
    assert "next: capax run" in captured.err


def test_plan_exits_with_3_and_lists_ways_out(
    model: str, capsys: pytest.CaptureFixture[str], probed: None
) -> None:
    assert main.run(["plan", model, "--memory", "20MiB", "--context", "512", "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["fits"] is False
    assert 1 <= len(document["alternatives"]) <= 3
    assert document["error"] in captured.err
    for way in document["alternatives"]:
        flags = ["--memory", str(way["memory"] or 20 << 20)]
        flags += ["--context", str(way["context_len"] or 512)]
        assert main.run(["plan", model, *flags]) == 0


def test_plan_without_a_place_for_a_probe_says_so_and_plans(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreError("cannot create the directory: Read-only file system")

    monkeypatch.setattr("capax.planning.probe.cached_probe", lambda *_: None)
    monkeypatch.setattr("capax.planning.probe.measure", refuse)
    assert main.run(["plan", model, "--memory", "300MiB"]) == 0
    captured = capsys.readouterr()
    assert "FITS" in captured.out
    assert "tok/s" not in captured.out
    assert "no speeds are predicted: cannot create the directory" in captured.err
    monkeypatch.setattr("capax.planning.probe.measure", lambda *_, **__: PROBE)
    monkeypatch.setattr("capax.planning.probe.keep_probe", refuse)
    assert main.run(["plan", model, "--memory", "300MiB"]) == 0
    captured = capsys.readouterr()
    assert "tok/s" in captured.out
    assert "the measurement is not kept" in captured.err


def test_plan_loads_no_weights(model: str, tmp_path: Path, probed: None) -> None:
    """A file whose weights are a hole of 8 GiB is planned in an instant."""
    source = Path(model).read_bytes()
    path = tmp_path / "sparse.gguf"
    path.write_bytes(source)
    with path.open("r+b") as file:
        file.truncate(8 << 30)
    assert main.run(["plan", str(path), "--memory", "300MiB"]) == 0


def test_probe_shows_what_was_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def measure(*_: object, **__: object) -> object:
        asked.append(True)
        return PROBE

    monkeypatch.setattr("capax.planning.probe.measure", measure)
    monkeypatch.setattr("capax.planning.probe.keep_probe", lambda probe: keep_probe(probe))
    document = json_of(capsys, "probe", "--json")
    assert document["int8_gmacs"] == {"1": 200.0, "2": 400.0}
    assert main.run(["probe", "--refresh"]) == 0
    out = capsys.readouterr().out
    assert "64.00 MiB      40.0 GB/s" in out
    assert asked == [True, True]


def test_methods_lists_kinds_options_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    document = json_of(capsys, "methods", "kv", "--json")
    full = next(m for m in document["methods"] if m["name"] == "full")
    assert full["options"] == [
        {"name": "type", "type": "f32|f16|bf16|int8", "is_needed": False, "default": "f16"}
    ]
    assert main.run(["methods"]) == 0
    assert "weights=streamed" in capsys.readouterr().out


def test_the_whole_way_works_in_a_fresh_process(model: str, tmp_path: Path) -> None:
    finished = capax(tmp_path, "run", model, "-n", "4", "--temp", "0", stdin="the rain")
    assert finished.returncode == 0
    assert FIGURES.search(finished.stderr)


# --- on a terminal -------------------------------------------------------------------


class Terminal:
    """A command on a pseudo-terminal: what a person types and sees."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self.main, side = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "capax", *arguments],
            env=environment(tmp_path, TERM="dumb", XDG_STATE_HOME=str(tmp_path / "state")),
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(side)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def wait_for(self, pattern: str, seconds: float = 30) -> str:
        """Read until `pattern` appears after what was matched before; returns the match."""
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.seen)
            if match:
                self.seen = self.seen[match.end() :]
                return match[0]
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.main], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.main, 4096).decode("utf-8", "replace")
            except OSError:  # the other side closed
                raise AssertionError(f"no {pattern!r} before the end of {self.seen!r}") from None

    def end(self, press: str = "") -> int:
        """Wait for the end; `press` is a key to press, again while nothing happens.

        Python misses a signal that comes between readline's prompt and its wait for a key.
        """
        for _ in range(60):
            if press:
                self.type(press)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=0.5)
        raise AssertionError(f"the command goes on after {self.seen!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)


@pytest.mark.parametrize("command", [["chat"], ["run"]])
def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    tmp_path: Path, command: list[str]
) -> None:
    big = str(gguf_model("llama", encoding="Q8_0", max_position_embeddings=200_000))
    with Terminal(
        tmp_path, *command, big, "--ignore-eos", "-n", "90000", "--temp", "0"
    ) as terminal:
        terminal.wait_for(r"/help lists commands")
        terminal.wait_for(r"> ")
        terminal.type("the rain\n")
        terminal.wait_for(r"the rain\r\n[^\[]{20}")  # the echo, and an answer that has begun
        terminal.type("\x03")
        terminal.wait_for(r"\[ stopped \]")
        terminal.wait_for(r"> ")
        terminal.type("/nope\n")
        terminal.wait_for(r"there is no command '/nope'")
        terminal.wait_for(r"> ")
        assert terminal.end(press="\x03") == 0  # at the prompt it leaves
    assert (tmp_path / "state/capax/chat_history").stat().st_mode & 0o777 == 0o600


def test_a_message_between_quotes_has_several_lines(model: str, tmp_path: Path) -> None:
    with Terminal(tmp_path, "chat", model, "-n", "4") as terminal:
        terminal.wait_for(r"> ")
        terminal.type('"""\n')
        terminal.wait_for(r"\. ")
        terminal.type('one\ntwo\n"""\n')
        terminal.wait_for(r"\[ Prompt: \d+ tok")
        terminal.type("/exit\n")
        assert terminal.end() == 0


# --- the form of an answer -----------------------------------------------------------


def test_run_answers_in_the_form_of_a_schema_or_grammar(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    schema = '{"enum": ["left", "right"]}'
    grammar = 'root ::= "up" | "down"'
    (tmp_path / "schema.json").write_text(schema)
    (tmp_path / "grammar.gbnf").write_text(grammar)
    for flags, texts in (
        (["-j", schema], {'"left"', '"right"'}),
        (["--json-schema-file", str(tmp_path / "schema.json")], {'"left"', '"right"'}),
        (["--grammar", grammar], {"up", "down"}),
        (["--grammar-file", str(tmp_path / "grammar.gbnf")], {"up", "down"}),
    ):
        assert json_of(capsys, "run", model, "where?", "--json", *flags)["text"] in texts


def test_run_refuses_what_is_no_form(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for flags, message in (
        (["-j", "{"], "not JSON"),
        (["--grammar", "root ::= up"], "cannot be used"),
        (["--grammar-file", str(tmp_path / "none")], "cannot read"),
    ):
        assert main.run(["run", model, "where?", *flags]) != 0
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
    assert main.run(["run", model, "where?", "-j", "{}", "--grammar", "x"]) == 2
