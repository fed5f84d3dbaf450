"""`capax serve` before it listens: keys, safety, and what is missing."""

from __future__ import annotations

import builtins
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capax.cli.main import run
from capax.cli.serve import read_keys, shown_name
from capax.errors import ConfigError
from capax.serving.listen import bound_socket


def test_a_key_file_has_one_key_per_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\nfirst-key-1\n\n  second-key-2  \n", encoding="utf-8")
    assert read_keys(path) == ["first-key-1", "second-key-2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "holds no API key"), (b"# nothing\n", "holds no API key"), (b"\xff\xfe", "UTF-8")],
)
def test_a_bad_key_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_keys(path)


def test_a_key_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the API keys in .*nowhere"):
        read_keys(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["short", "with a space", "schlüssel-schlüssel", "control\x01key"])
def test_a_weak_key_is_refused_and_not_repeated(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "model.gguf", "--api-key", key]) == 1
    said = capsys.readouterr().err
    assert f"an API key of {len(key)} characters is not acceptable" in said
    assert key not in said


def test_off_loopback_a_key_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPAX_API_KEY", raising=False)
    assert run(["serve", "model.gguf", "--host", "0.0.0.0"]) == 1
    assert "so a key is needed" in capsys.readouterr().err


def test_an_address_that_cannot_be_had_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            bound_socket("127.0.0.1", port)


def test_memory_that_the_server_alone_needs_is_not_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["serve", "model.gguf", "--memory", "10MiB"]) == 3
    assert "the server itself takes up to 64.00 MiB" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_uvicorn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "uvicorn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    assert run(["serve", "model.gguf"]) == 1
    assert "pip install 'capax[serve]'" in capsys.readouterr().err


def test_the_command_imports_the_server_when_it_runs_and_not_before() -> None:
    code = (
        "import sys, capax.cli.serve; "
        "print(sorted({'fastapi', 'uvicorn', 'pydantic', 'capax.serving'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("/models/Some-Model.Q4.gguf", "Some-Model.Q4"),
        ("folder/llama", "llama"),
    ],
)
def test_clients_see_a_name_and_not_a_path(model: str, name: str) -> None:
    assert shown_name(model) == name
