"""`capax quantize` and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize as gguf_dequantize

from capax.cli import main
from capax.errors import ConfigError, FileFormatError, StoreError
from capax.files.encodings import F32
from capax.files.gguf import GGUFFile, TensorData, write_gguf
from capax.files.model_file import open_model
from capax.weights.requantize import TARGETS, plan_changes, requantize
from tests.models import gguf_model

# Relative root-mean-square error that an encoding leaves on normal weights, with headroom of a
# quarter over what was measured 2026-11-22: 0.0054, 0.0855, 0.0781, 0.0700, 0.0171.
ERROR = {"Q8_0": 0.0067, "Q4_0": 0.107, "Q4_1": 0.098, "Q4_K": 0.0875, "Q6_K": 0.0214}


def matrices(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    rng = np.random.default_rng(7)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    write_gguf(
        path,
        {"general.architecture": "test", "general.file_type": 0, "kept": "as it was"},
        [TensorData(name, v.shape, F32, v) for name, v in values.items()],
    )
    return path


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_written_matrices_are_close_to_the_source_for_a_foreign_reader(
    tmp_path: Path, target: str
) -> None:
    shapes = {"token_embd.weight": (64, 256), "blk.0.ffn_up.weight": (48, 512), "norm": (256,)}
    source = matrices(tmp_path / "in.gguf", shapes)
    requantize(source, tmp_path / "out.gguf", target.lower())
    before = {t.name: t for t in GGUFReader(source).tensors}
    for tensor in GGUFReader(tmp_path / "out.gguf").tensors:
        wanted = np.asarray(before[tensor.name].data, np.float32)
        if tensor.name == "norm":
            assert tensor.tensor_type.name == "F32"
            assert np.array_equal(tensor.data, wanted)
            continue
        is_output = tensor.name == "token_embd.weight"
        assert tensor.tensor_type.name == (TARGETS[target].output if is_output else target)
        found = gguf_dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
        assert 0 < error < ERROR[tensor.tensor_type.name]


def test_metadata_is_kept_and_the_file_type_is_the_new_one(tmp_path: Path) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (32, 256)})
    requantize(source, tmp_path / "out.gguf", "Q4_K")
    metadata = GGUFFile.open(tmp_path / "out.gguf").metadata
    assert metadata["kept"] == "as it was"
    assert metadata["general.file_type"] == 14


@pytest.mark.parametrize(
    ("target", "row", "encoding"),
    [("Q4_K", 576, "Q4_1"), ("Q6_K", 576, "Q8_0"), ("Q4_0", 40, "F16"), ("Q4_K", 40, "F16")],
)
def test_rows_that_blocks_do_not_divide_fall_back_and_say_so(
    tmp_path: Path, target: str, row: int, encoding: str
) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (2, 32), "a": (4, row)})
    change = plan_changes(GGUFFile.open(source), target)[1]
    assert str(change.encoding) == encoding
    assert f"does not divide rows of {row}" in change.reason


def test_the_output_matrix_is_the_own_one_if_there_is_one(tmp_path: Path) -> None:
    shapes = {"token_embd.weight": (8, 256), "output.weight": (8, 256)}
    changes = plan_changes(GGUFFile.open(matrices(tmp_path / "in.gguf", shapes)), "Q4_0")
    assert {c.tensor.name: str(c.encoding) for c in changes} == {
        "token_embd.weight": "Q4_0",
        "output.weight": "Q6_K",
    }


def test_a_matrix_in_the_target_encoding_is_copied_bit_for_bit(tmp_path: Path) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (8, 256), "a": (16, 256)})
    requantize(source, tmp_path / "once.gguf", "Q4_0")
    requantize(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0")
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


def test_chunks_of_rows_do_not_change_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (50, 256)})
    requantize(source, tmp_path / "whole.gguf", "Q4_K")
    monkeypatch.setattr("capax.weights.requantize._CHUNK_ELEMENTS", 3 * 256)
    requantize(source, tmp_path / "parts.gguf", "Q4_K")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


def test_a_value_that_is_not_finite_leaves_no_output(tmp_path: Path) -> None:
    values = np.ones((4, 256), np.float32)
    values[2, 3] = np.inf
    write_gguf(tmp_path / "in.gguf", {}, [TensorData("a", values.shape, F32, values)])
    with pytest.raises(FileFormatError, match="'a' has a value that is not finite"):
        requantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


def test_a_directory_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (8, 256)})
    with pytest.raises(StoreError, match="cannot write"):
        requantize(source, tmp_path / "no/out.gguf", "Q8_0")


def test_an_unknown_target_lists_what_there_is(tmp_path: Path) -> None:
    source = matrices(tmp_path / "in.gguf", {"token_embd.weight": (8, 256)})
    with pytest.raises(ConfigError, match="writes Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"):
        plan_changes(GGUFFile.open(source), "Q3_K_M")


def test_the_command_writes_a_model_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    assert main.run(["quantize", str(gguf_model("llama")), str(out), "q8_0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes_after"] == sum(t.nbytes for t in open_model(out).tensors.values())
    assert document["bytes_after"] < document["bytes_before"]
    # The tiny model's feed-forward rows of 160 are whole blocks of 32, not of 256.
    assert main.run(["quantize", str(out), str(tmp_path / "k.gguf"), "Q4_K"]) == 0
    captured = capsys.readouterr()
    assert "256 does not divide rows of 160" in captured.err
    assert "quantised already" in captured.err


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main.run(["quantize", str(gguf_model("llama")), str(out), "Q8_0", "--dry-run"]) == 0
    assert not out.exists()
    assert "would be" in capsys.readouterr().out


def test_an_existing_output_is_not_replaced_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    arguments = ["quantize", str(gguf_model("llama")), str(out), "Q8_0"]
    assert main.run(arguments) == 1
    assert out.read_text() == "precious"
    assert main.run([*arguments, "--force"]) == 0
    assert open_model(out).config.n_layers == 3


def test_the_source_is_never_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    source = gguf_model("llama")
    assert main.run(["quantize", str(source), str(source), "Q8_0", "--force"]) == 1
    assert "is the file to read" in capsys.readouterr().err
