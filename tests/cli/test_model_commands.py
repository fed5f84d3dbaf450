"""`capax pull`, `list`, `rm` and `inspect`: results on stdout, talk on stderr."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from capax.cli.inspect import command as inspect
from capax.cli.list_models import command as list_models
from capax.cli.pull import command as pull
from capax.cli.quantize import command as quantize
from capax.cli.remove import command as remove
from capax.errors import CapaxError, ConfigError
from capax.files.registry import Registry

DATA = b"0123456789" * 300


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def ok(command: Any, *arguments: str) -> Result:
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result


def add_blob(name: str) -> Path:
    registry = Registry()
    digest = hashlib.sha256(DATA).hexdigest()
    with registry.new_blob(digest, len(DATA)) as writer:
        writer.write(DATA)
    return registry.path_of(registry.add_blob(name, digest, len(DATA), "a test"))


def small_model(path: Path) -> Path:
    """Write a one-layer Llama with random weights and no usable tokenizer."""
    import gguf

    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny \x1b[2J model")
    writer.add_license("apache-2.0")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(16)
    writer.add_chat_template("{{ messages }}\n" * 20)
    shapes = {
        "token_embd": (16, 32), "output_norm": (32,), "blk.0.attn_norm": (32,),
        "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32), "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if name == "token_embd":
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_pull_prints_the_path_and_verify_the_digest(tmp_path: Path) -> None:
    model = small_model(tmp_path / "tiny.gguf")
    assert ok(pull, str(model)).stdout == f"{model}\n"
    assert "by reference" in ok(pull, "--verify", "tiny").stderr
    blob = add_blob("pulled")
    result = ok(pull, "--verify", "pulled")
    assert result.stdout == f"{blob}\n"
    assert hashlib.sha256(DATA).hexdigest() in result.stderr


def test_quiet_pull_says_nothing_but_the_result(tmp_path: Path) -> None:
    from capax.cli.console import Console

    model = small_model(tmp_path / "tiny.gguf")
    ok(pull, str(model))
    quiet = CliRunner().invoke(pull, ["--verify", "tiny"], obj=Console(verbosity=-1))
    assert (quiet.stdout, quiet.stderr) == (f"{model}\n", "")


def test_pull_offline_fails_with_our_error() -> None:
    result = run(pull, "--offline", "smollm2-135m")
    assert isinstance(result.exception, CapaxError)
    assert result.stdout == ""


def test_list_is_a_table_or_one_json_document(tmp_path: Path) -> None:
    empty = ok(list_models)
    assert empty.stdout == ""
    assert "capax pull" in empty.stderr
    assert json.loads(ok(list_models, "--json").stdout) == {"models": []}
    path = add_blob("b-model")
    model = tmp_path / "a.gguf"
    model.touch()
    ok(pull, str(model))
    model.unlink()
    assert ok(list_models).stdout.splitlines() == [
        "NAME         SIZE  SOURCE",
        f"a             0 B  {model} (gone)",
        "b-model  2.93 KiB  a test",
    ]
    models = json.loads(ok(list_models, "--json").stdout)["models"]
    assert [entry["name"] for entry in models] == ["a", "b-model"]
    assert [entry["exists"] for entry in models] == [False, True]
    assert models[1] == {
        "name": "b-model",
        "source": "a test",
        "nbytes": 3000,
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "path": str(path),
        "exists": True,
    }


def test_rm_frees_bytes_when_the_last_name_goes(tmp_path: Path) -> None:
    path = add_blob("one")
    add_blob("two")
    assert "still uses" in ok(remove, "one").stderr
    assert path.exists()
    assert "2.93 KiB freed" in ok(remove, "two").stderr
    assert not path.exists()
    model = tmp_path / "mine.gguf"
    model.touch()
    ok(pull, str(model))
    assert "untouched" in ok(remove, "mine").stderr
    assert model.exists()
    assert isinstance(run(remove, "one").exception, CapaxError)
    assert run(remove).exit_code == 2


def test_inspect_shows_every_header_fact(tmp_path: Path) -> None:
    model = small_model(tmp_path / "tiny.gguf")
    facts = json.loads(ok(inspect, str(model), "--json").stdout)
    assert facts["architecture"] == "llama"
    assert facts["licence"] == "apache-2.0"
    assert facts["context_len"] == 128
    assert facts["n_parameters"] == 16 * 32 + 3 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    assert [(use["encoding"], use["n_tensors"]) for use in facts["encodings"]] == [
        ("F32", 10),
        ("Q8_0", 1),
    ]
    assert sum(use["nbytes"] for use in facts["encodings"]) == facts["nbytes"]
    assert sum(use["n_parameters"] for use in facts["encodings"]) == facts["n_parameters"]
    assert facts["tokenizer"].startswith("unusable: ")
    assert facts["chat_template"].startswith("{{ messages }}")
    text = ok(inspect, str(model)).stdout
    for part in ("apache-2.0", "128 tokens", "1 layers", "Q8_0", "8 more lines"):
        assert part in text


def test_inspect_does_not_pass_on_control_characters(tmp_path: Path) -> None:
    text = ok(inspect, str(small_model(tmp_path / "tiny.gguf"))).stdout
    assert "\x1b" not in text
    assert r"tiny \x1b[2J model" in text


def test_inspect_of_a_damaged_file_is_our_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    result = run(inspect, str(path))
    assert isinstance(result.exception, CapaxError)
    assert result.stdout == ""


def test_inspect_the_real_model(smollm2: Path) -> None:
    facts = json.loads(ok(inspect, str(smollm2), "--json").stdout)
    assert facts["n_parameters"] == 134_515_008
    assert facts["tokenizer"] == "gpt2/smollm"
    assert facts["eos_tokens"] == ["<|endoftext|>", "<|im_end|>"]
    assert {use["encoding"] for use in facts["encodings"]} >= {"Q4_1", "Q8_0", "F32"}


def test_quantize_writes_only_regular_files_under_a_name(tmp_path: Path) -> None:
    source = small_model(tmp_path / "in.gguf")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for out, message in (("-", "standard output"), (str(pipe), "not a regular file")):
        result = run(quantize, str(source), out, "Q8_0", "--force")
        assert isinstance(result.exception, ConfigError)
        assert message in str(result.exception)
    assert pipe.is_fifo()
    assert not Path("-").exists()


def test_quantize_counts_the_matrices_that_cannot_have_the_type(tmp_path: Path) -> None:
    result = ok(quantize, str(small_model(tmp_path / "in.gguf")), str(tmp_path / "out"), "Q4_K")
    notes = [line for line in result.stderr.splitlines() if "256 does not divide" in line]
    assert 1 <= len(notes) <= 4, result.stderr
    assert any("matrices: Q4_1 instead" in line for line in notes)
