"""Manifests of other versions, what changed between two stops, what a log is worth."""

import json
from pathlib import Path

import pytest

from capax.cli.run_facts import placeless, without_password
from capax.errors import FileFormatError, StoreError
from capax.files.git_state import git_state
from capax.files.run_folder import RunFolder, changes, read_manifest

OLD = {
    "format": 1, "status": "success", "settings": {"model": "m", "rounds": 3}, "n_samples": 3,
    "machine": {"processor": "x86_64"}, "problems": {"a": "numeric"},
}  # fmt: skip


def write(path: Path, manifest: object) -> None:
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_an_old_manifest_is_read_and_gone_on_with(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    manifest = read_manifest(tmp_path)
    assert manifest["kind"] == "rounds"
    assert manifest["config"] == OLD["settings"]
    assert manifest["hardware"] == OLD["machine"]
    with RunFolder(tmp_path, "rounds", {"model": "m", "rounds": 3}) as run:
        run.set_status("success")
    assert read_manifest(tmp_path)["format"] == 2
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().split("\n")
              if line]  # fmt: skip
    assert events == ["went on", "ended"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({**OLD, "format": 3}, "has format 3, not 2"),
        ({"format": 2, "settings": {}}, "no manifest"),
        ({"format": 1, "config": []}, "no manifest"),
        ([], "no manifest"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, manifest: object, message: str) -> None:
    write(tmp_path, manifest)
    with pytest.raises(FileFormatError, match=message):
        read_manifest(tmp_path)
    with pytest.raises(FileFormatError, match=message), RunFolder(tmp_path, "k", {}):
        pass
    with pytest.raises(StoreError, match=r"is .* a run"):
        read_manifest(tmp_path / "nothing")


def test_changes_are_named_wherever_they_lie() -> None:
    before = {"versions": {"capax": "1"}, "git": {"capax": {}}, "status": "started"}
    after = {"versions": {"capax": "2"}, "git": {"capax": {"commit": "a"}}, "status": "success"}
    assert changes(before, after) == ["versions.capax", "git.capax.commit"]
    assert changes(before, before) == []


def test_progress_is_logged_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "k", {}) as run:
        for done in range(1, 101):
            run.log_progress(done, 100)
        run.set_status("success")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    progress = [line["done"] for line in lines if line["event"] == "progress"]
    assert progress[-1] == 100
    assert len(progress) <= 4
    times = [line["time"] for line in lines]
    assert times == sorted(times)


def test_a_folder_outside_of_git_has_no_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/models/a.gguf", "a.gguf"),
        ("~/a.gguf", "a.gguf"),
        ("tree:draft=/models/a.gguf,width=4", "tree:draft=a.gguf,width=4"),
        ("a/b.jsonl", "a/b.jsonl"),
        ("1/2", "1/2"),
        ("https://u:p@host:1/v1?key=k", "https://host:1/v1"),
    ],
)
def test_places_and_passwords_are_left_out(value: str, shown: str) -> None:
    assert placeless(value) == shown


def test_a_url_keeps_what_names_the_server() -> None:
    assert without_password("http://a:b@h:1/v1") == "http://h:1/v1"
    assert without_password("http://h/v1?a=b") == "http://h/v1"
