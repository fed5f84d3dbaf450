"""Files of gates: whose they are, what is refused, and published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from capax.errors import ConfigError, FileFormatError
from capax.kv import kv_method
from capax.kv.retention_gates import import_gates, read_gates, read_header, to_bf16, write_gates
from tests.kv.bounded_runs import Runner, gates_file, some_ids


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


def published(runner: Runner, width: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Return gates under the names that the paper's authors publish."""
    c, rng = runner.config, np.random.default_rng(seed)
    tensors = {}
    for layer in range(c.n_layers):
        name = f"model.layers.{layer}.self_attn.retention_gate"
        shapes = {
            "linear1.weight": (width, c.d_model),
            "linear1.bias": (width,),
            "linear2.weight": (c.n_kv_heads, width),
            "bias": (c.n_kv_heads,),
        }
        for part, shape in shapes.items():
            tensors[f"{name}.{part}"] = rng.standard_normal(shape).astype(np.float32)
    return tensors


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    x = np.array([1.0, 1.00390625, 1.01171875, -3.14159], np.float32)
    back = (to_bf16(x).astype(np.uint32) << 16).view(np.float32)
    assert back.tolist() == [1.0, 1.0, 1.015625, -3.140625]


def test_published_gates_become_those_of_a_model(runner: Runner, tmp_path: Path) -> None:
    tensors = published(runner)
    save_file(tensors, tmp_path / "public.safetensors")
    import_gates(tmp_path / "public.safetensors", runner.file, tmp_path / "own.safetensors")
    gates = read_gates(tmp_path / "own.safetensors", runner.file)
    assert gates.header.input == "raw"
    x = np.random.default_rng(1).standard_normal((4, runner.config.d_model)).astype(np.float32)
    p = {n.split("retention_gate.")[1]: t for n, t in tensors.items() if ".1.self_attn" in n}
    h = x @ p["linear1.weight"].T + p["linear1.bias"]
    z = (h / (1 + np.exp(-h))) @ p["linear2.weight"].T + p["bias"]
    assert np.allclose(gates.log_beta(1, x), -np.logaddexp(0, -z).T, rtol=0.1, atol=0.05)
    kv = f"trim:gates={tmp_path / 'own.safetensors'},memory=40,buffer=8"
    assert np.isfinite(runner.feed(runner.cache(kv), some_ids(100))).all()


def test_published_gates_as_they_are_get_a_hint(runner: Runner, tmp_path: Path) -> None:
    save_file(published(runner), tmp_path / "public.safetensors")
    with pytest.raises(FileFormatError, match="capax kv import-gates"):
        read_header(tmp_path / "public.safetensors")


@pytest.mark.parametrize("change", ["missing", "foreign", "shape", "layers"])
def test_published_gates_that_do_not_fit_are_refused(
    runner: Runner, tmp_path: Path, change: str
) -> None:
    tensors = published(runner)
    first = "model.layers.0.self_attn.retention_gate.bias"
    if change == "missing":
        del tensors[first]
    elif change == "foreign":
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((2, 2), np.float32)
    elif change == "shape":
        tensors[first] = np.zeros(runner.config.n_kv_heads + 1, np.float32)
    else:
        last = f".{runner.config.n_layers - 1}."
        tensors = {n: t for n, t in tensors.items() if last not in n}
    save_file(tensors, tmp_path / "public.safetensors")
    with pytest.raises(FileFormatError):
        import_gates(tmp_path / "public.safetensors", runner.file, tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()


def test_the_plan_counts_the_gates(runner: Runner, tmp_path: Path) -> None:
    path = gates_file(tmp_path / "g.safetensors", runner)
    footprint = kv_method(f"trim:gates={path}").footprint(runner.config)
    assert footprint.shared == read_gates(path, runner.file).nbytes > 0
    store = kv_method(f"trim:gates={path}").open(runner.file, 1, 1)
    assert store.nbytes == footprint.shared


def test_files_that_are_no_gates_are_refused(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileFormatError):
        read_header(path)
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(FileFormatError, match="made by 'capax train retention'"):
        read_header(path)


def test_values_that_are_not_finite_are_refused(runner: Runner, tmp_path: Path) -> None:
    from capax.files.digest import weights_digest

    c = runner.config
    tensors = {
        f"blk.{layer}.retention.{part}": np.full(shape, np.nan, np.float32)
        for layer in range(c.n_layers)
        for part, shape in {
            "w1": (4, c.d_model), "b1": (4,), "w2": (c.n_kv_heads, 4), "bias": (c.n_kv_heads,)
        }.items()
    }  # fmt: skip
    about = {"model": weights_digest(runner.file).hex(), "input": "rms"}
    write_gates(tmp_path / "g.safetensors", tensors, about)
    with pytest.raises(FileFormatError, match="is not finite"):
        read_gates(tmp_path / "g.safetensors", runner.file)


def test_a_missing_file_says_so() -> None:
    with pytest.raises((FileFormatError, ConfigError), match=r"no-such\.safetensors"):
        read_header("no-such.safetensors")
