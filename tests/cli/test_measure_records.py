"""Records, sweeps and what is made of them, as a user meets them, on tiny models."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capax.measuring.records import list_records, write_record
from tests.cli.test_main import capax, environment
from tests.measuring.recorded import record
from tests.models import gguf_model

WORDS = "the rain in the hills and the sound of it on the roof of the house\n"


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    names = ["a.txt", "b.txt", "c.txt"]
    for number, name in enumerate(names, 1):
        (tmp_path / name).write_text(WORDS * (10 + number))
    return [str(tmp_path / name) for name in names]


def model() -> str:
    return str(gguf_model("llama"))


@pytest.mark.slow  # five processes
def test_every_measure_keeps_a_record(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "records"
    table = tmp_path / "models.csv"
    table.write_text("model,date,density\na,2023-02-01,0.2\nb,2023-07-01,0.5\nc,2024-02-01,1.6\n")
    samples = str(tmp_path / "samples.json")
    commands = [
        ("perplexity", model(), "-f", texts[0], "-c", "32"),
        ("measure", "capacity", model(), "-f", texts[0], "--max-tokens", "64"),
        ("measure", "compress", texts[0], "-m", model(), "-o", str(tmp_path / "a.cpx"),
         "--window", "32"),
        ("measure", "density", str(table)),
        ("measure", "runtime", "profile", model(), "-o", samples, "-p", "1,4", "-n", "1,2,3",
         "-r", "2"),
        ("measure", "kv", model(), "-f", texts[0], "--methods", "f16,int8", "-c", "64",
         "--chunks", "1", "--depths", "0", "--needles", "0", "--no-controls"),
        ("bench", model(), "-p", "8", "-n", "2", "-d", "0,4", "-r", "2"),
    ]  # fmt: skip
    for command in commands:
        done = capax(tmp_path, *command, "--record", str(folder))
        assert done.returncode == 0, done.stderr
        assert f"kept in {folder}" in done.stderr
    found = [f.record for f in list_records(folder).found]
    assert sorted(r.kind for r in found) == [
        "bench", "capacity", "compress", "density", "kv", "kv", "kv", "perplexity",
        "runtime samples",
    ]  # fmt: skip
    for one in found:
        assert one.figures
        assert one.versions["capax"]
        if one.kind != "density":
            assert len(one.model.digest) == 64
            assert one.method["weights"] == "F32"
        assert str(tmp_path) not in json.dumps([one.model.name, one.data and one.data.name])
    kv = {r.method["kv"]: r.figure("kl") for r in found if r.kind == "kv"}
    assert set(kv) == {"f32", "f16", "int8"}
    assert kv["f32"] is not None
    assert kv["int8"] is not None
    assert abs(kv["f32"].value or 0) < 1e-9 < (kv["int8"].value or 0)
    assert kv["int8"].interval is None  # of one chunk
    speeds = next(r for r in found if r.kind == "bench").figures
    assert [f.name for f in speeds] == ["pp8", "pp8 @ d4", "tg2", "tg2 @ d4"]
    assert all(f.of_machine and f.n == 2 for f in speeds)
    compressed = next(r for r in found if r.kind == "compress").figure("bits_per_byte")
    assert compressed is not None
    assert compressed.peer is not None
    assert compressed.peer.name == "xz -9e"


def test_a_record_goes_to_the_data_directory_or_nowhere(tmp_path: Path, texts: list[str]) -> None:
    command = ("perplexity", model(), "-f", texts[0], "-c", "32", "--json")
    data = {"XDG_DATA_HOME": str(tmp_path / "data")}
    assert capax(tmp_path, *command, "--record", "none", **data).returncode == 0
    assert not (tmp_path / "data" / "capax" / "records").exists()
    done = capax(tmp_path, *command, **data)
    (found,) = list_records(tmp_path / "data" / "capax" / "records").found
    figure = found.record.figure("perplexity")
    assert figure is not None
    assert figure.value == json.loads(done.stdout)["perplexity"]
    shown = capax(tmp_path, "measure", "show", "last", "--json", **data)
    assert json.loads(shown.stdout)["kind"] == "perplexity"
    refused = capax(tmp_path, *command, "--record", texts[0], **data)
    assert refused.returncode == 1
    assert "cannot create the folder" in refused.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.mkdir()
    write_record(path, record("small", 2.0, time="2026-01-01T00:00:00Z"))
    write_record(path, record("big", 1.0, time="2026-01-02T00:00:00Z"))
    write_record(path, record("else", 1.0, settings={"context": 9}, time="2026-01-03T00:00:00Z"))
    return path


def ids(folder: Path) -> list[str]:
    return [found.record.id for found in list_records(folder).found]


def test_list_filters(tmp_path: Path, folder: Path) -> None:
    (folder / "bad.json").write_text('{"schema": "capax.record/1"}')
    everything = capax(tmp_path, "measure", "list", "--records", str(folder))
    assert everything.stdout.count("perplexity") == 6
    assert "left out" in everything.stderr
    assert "bad.json" in everything.stderr
    some = capax(tmp_path, "measure", "list", "--records", str(folder), "--model", "big",
                 "--method", "kv=f16", "--kind", "perplexity", "--json")  # fmt: skip
    assert [row["id"] for row in json.loads(some.stdout)] == ids(folder)[1:2]
    none = capax(tmp_path, "measure", "list", "--records", str(folder), "--method", "kv=f32")
    assert len(none.stdout.splitlines()) == 1


def test_a_terminal_sees_no_control_characters(tmp_path: Path, folder: Path) -> None:
    write_record(folder, record("\x1b[2J\x07evil\nline", kind="\x1b]0;title"))
    shown = capax(tmp_path, "measure", "list", "--records", str(folder)).stdout
    assert "evil" in shown
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 5


def test_compare_refuses_and_lists_the_keys(tmp_path: Path, folder: Path) -> None:
    small, big, other = ids(folder)
    fine = capax(tmp_path, "measure", "compare", small, big, "--records", str(folder))
    assert fine.returncode == 0, fine.stderr
    assert "1 (0.500 x)" in fine.stdout
    refused = capax(tmp_path, "measure", "compare", small, other, "--records", str(folder))
    assert refused.returncode == 1
    assert "settings.context" in refused.stdout
    assert "64 | 9" in refused.stdout
    assert "0.500 x" not in refused.stdout
    assert "they differ in settings.context" in refused.stderr
    anyway = capax(tmp_path, "measure", "compare", small, other, "--records", str(folder),
                   "--anyway")  # fmt: skip
    assert anyway.returncode == 0
    assert "0.500 x" in anyway.stdout
    document = capax(tmp_path, "measure", "compare", small, other, "--records", str(folder),
                     "--json")  # fmt: skip
    assert json.loads(document.stdout)["comparable"] is False
    assert document.returncode == 1


@pytest.mark.slow  # six processes
def test_plot_export_and_page(tmp_path: Path, folder: Path) -> None:
    where = ("--records", str(folder))
    picture = tmp_path / "p.png"
    for extra in ((), ("--against", "weights_nbytes"), ("--against", "speed")):
        done = capax(tmp_path, "measure", "plot", *where, "--figure", "perplexity", *extra,
                     "-o", str(picture))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert struct.unpack(">II", picture.read_bytes()[16:24]) > (400, 100)
        picture.unlink()
    missing = capax(tmp_path, "measure", "plot", *where, "--figure", "x", "-o", str(picture))
    assert "no record has a figure 'x'; there are perplexity, speed" in missing.stderr
    exported = capax(tmp_path, "measure", "export", *where, "--lm-eval-out", str(tmp_path / "out"))
    assert exported.returncode == 0, exported.stderr
    assert len(exported.stdout.split()) == 3
    page = tmp_path / "page.html"
    assert capax(tmp_path, "measure", "leaderboard", str(folder), "-o", str(page)).returncode == 0
    assert page.read_text().count("<section>") == 2


def sweep(out: Path, texts: list[str], *more: str) -> tuple[str, ...]:
    return ("measure", "sweep", model(), *texts, "-e", "original,Q8_0,Q4_0,Q4_1", "-o", str(out),
            "-c", "32", "-t", "1", *more)  # fmt: skip


@pytest.mark.slow  # twice twelve cells
def test_a_killed_sweep_computes_no_finished_cell_again(tmp_path: Path, texts: list[str]) -> None:
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "capax", *sweep(out, texts)]
    process = subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list((out / "records").glob("[!.]*.json"))) < 4 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = {f.path: (f.path.stat().st_mtime_ns, f.record) for f in list_records(out).found}
    assert 4 <= len(before) < 12
    done = capax(tmp_path, *sweep(out, texts, "--json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["computed"] == 12 - len(before)
    after = {f.path: (f.path.stat().st_mtime_ns, f.record) for f in list_records(out).found}
    assert len(after) == 12
    assert {path: after[path] for path in before} == before
    assert struct.unpack(">II", Path(report["picture"]).read_bytes()[16:24]) > (400, 200)
    fresh = json.loads(capax(tmp_path, *sweep(tmp_path / "fresh", texts, "--json")).stdout)
    assert [figures(row) for row in fresh["records"]] == [figures(row) for row in report["records"]]


def figures(row: dict[str, object]) -> list[object]:
    return [f["value"] for f in row["figures"] if not f["of_machine"]]  # type: ignore[attr-defined]


@pytest.mark.slow  # five processes
def test_a_sweep_grows_and_knows_its_settings(tmp_path: Path, texts: list[str]) -> None:
    out = tmp_path / "sweep"
    base = ("measure", "sweep", model(), "-o", str(out), "-e", "original,Q8_0", "-t", "1", "--json")
    first = json.loads(capax(tmp_path, *base, texts[0], "-c", "32").stdout)
    assert first["computed"] == 2
    more = json.loads(capax(tmp_path, *base, *texts[:2], "-c", "32").stdout)
    assert more["computed"] == 2
    assert "begun with context 32, not 16" in capax(tmp_path, *base, texts[0], "-c", "16").stderr
    damaged = next((out / "records").glob("Q8_0-*.json"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert json.loads(capax(tmp_path, *base, *texts[:2], "-c", "32").stdout)["computed"] <= 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("-e", "Q3_X"), "--encodings has 'Q3_X'"),
        (("-e", ","), "--encodings is empty"),
        (("-c", "30000"), "the model was trained for 512"),
    ],
)
def test_a_sweep_refuses(
    tmp_path: Path, texts: list[str], more: tuple[str, ...], message: str
) -> None:
    done = capax(tmp_path, "measure", "sweep", model(), texts[0], "-o", str(tmp_path / "s"), *more)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow  # four processes
def test_procbench_continues_and_keeps_a_record(tmp_path: Path) -> None:
    folder, answers = tmp_path / "records", tmp_path / "answers.jsonl"
    long = str(gguf_model("llama", max_position_embeddings=4096))
    command = ("measure", "procbench", long, "--tasks", "Rotate,Cumulate", "--steps", "2-3",
               "--per-cell", "1", "--max-tokens", "8", "-o", str(answers), "--record", str(folder),
               "--json")  # fmt: skip
    first = capax(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    lines = answers.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5  # the header and 2 x 2 problems
    answers.write_bytes(b"".join(lines[:3]))
    again = capax(tmp_path, *command)
    assert again.stdout == first.stdout
    assert sorted(answers.read_bytes().splitlines(keepends=True)) == sorted(lines)
    found = list_records(folder).found  # one file if both ended in the same second
    one, two = found[0].record, found[-1].record
    assert one.figures == two.figures
    assert one.seed == 12
    assert one.data is not None
    assert one.data.n_items == 4
    assert {"pa", "sm", "fm", "read", "cut"} <= {figure.name for figure in one.figures}
    other = capax(tmp_path, *command, "--seed", "13")
    assert other.returncode == 1
    bad = capax(tmp_path, *command, "--steps", "two")
    assert bad.returncode == 2


def in_process(*words: str) -> Result:
    from capax.cli.measure import command as measure

    return CliRunner().invoke(measure, words)


@pytest.mark.slow  # two models
def test_a_procbench_run_directory_is_continued_compared_and_exported(tmp_path: Path) -> None:
    long = str(gguf_model("llama", max_position_embeddings=4096))
    one, two, other = (str(tmp_path / name) for name in ("one", "two", "other"))
    command = ("procbench", long, "--tasks", "Rotate,Cumulate", "--steps", "2-3", "--per-cell", "1",
               "--max-tokens", "8", "--record", "none", "-t", "1")  # fmt: skip
    first = in_process(*command, "-o", one)
    assert first.exit_code == 0, first.output
    names = {path.name for path in Path(one).iterdir()}
    assert {"manifest.json", "samples.jsonl", "log.jsonl", "record.json", "results.json",
            "report.md", "report.html", "plots"} <= names  # fmt: skip
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["status"] == "success"
    lines = (tmp_path / "one" / "samples.jsonl").read_bytes()
    (tmp_path / "two").mkdir()
    manifest["status"] = "started"
    (tmp_path / "two" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "two" / "samples.jsonl").write_bytes(lines[: len(lines) // 2])  # it was killed
    unfinished = in_process("compare", one, two)
    assert "is not finished" in str(unfinished.exception)
    again = in_process(*command, "-o", two)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "two" / "samples.jsonl").read_bytes() == lines
    assert in_process("compare", one, two).exit_code == 0
    assert in_process(*command, "-o", other, "--seed", "13").exit_code == 0
    refused = in_process("compare", one, other)
    assert "not comparable" in str(refused.exception)
    assert "seed" in str(refused.exception)
    exported = in_process("export", one, "--lm-eval-out", str(tmp_path / "out"))
    samples = next(Path(line) for line in exported.output.split() if line.endswith(".jsonl"))
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 4
    assert all({"doc_id", "resps", "pa", "sm", "fm"} <= row.keys() for row in rows)
    assert "was begun with mode" in str(in_process(*command, "-o", one, "--mode", "json").exception)
