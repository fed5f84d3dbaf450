"""Damage real headers at random: only a CapaxError may come out, whatever went in.

A case is its seed; a failure prints it, and `damaged(good, seed)` makes the bytes again.
Cases that once failed belong in the tables under `tests/hostile`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from capax.errors import CapaxError
from capax.files.gguf import GGUFArray, GGUFFile
from capax.files.model_file import open_model
from capax.files.tensors import TensorReader
from capax.files.tokenizer import Tokenizer
from tests.models import FAMILY_NAMES, LLAMA3_ROPE, gguf_model, hf_model

N_CASES, N_CASES_SLOW = 500, 20_000
MAX_RSS_GROWTH_NBYTES = 128 << 20
INTERESTING = [
    n.to_bytes(8, "little")
    for n in (0, 1, 7, 8, 31, 32, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
              2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)
]  # fmt: skip


def damaged(good: bytes, seed: int) -> bytes:
    """Return `good` with one to four random changes of the kinds that parsers get wrong."""
    rng = random.Random(seed)
    out = bytearray(good)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        at = rng.randrange(len(out)) if out else 0
        kind = rng.randrange(8)
        if kind == 0:
            out[at : at + 1] = bytes([out[at] ^ (1 << rng.randrange(8))]) if out else b"x"
        elif kind == 1:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            out[at : at + 8] = rng.choice(INTERESTING)
        elif kind == 3:
            out[at : at + 4] = rng.choice(INTERESTING)[:4]
        elif kind == 4:
            del out[at : at + rng.choice([1, 4, 8, 100])]
        elif kind == 5:
            out[at:at] = bytes(rng.choice([1, 4, 8, 100]))
        elif kind == 6:
            length = rng.randrange(1, 64)
            out[at:at] = out[at : at + length]
        else:
            del out[at:]
    return bytes(out)


def changed_json(good: bytes, seed: int) -> bytes:
    """Change the values of a JSON object rather than its letters."""
    rng = random.Random(seed)
    value = json.loads(good)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = value
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.2:
                break
            at = at[key]
        at[key] = rng.choice(
            [None, True, False, 0, -1, 1, 2, 3, 64, 2**31, 2**40, 2**64, 1e300, float("nan"),
             float("inf"), 0.5, "", "x", "yarn", [], [1], {}, {"a": 1}]
        )  # fmt: skip
    return json.dumps(value).encode()


def use_all_of(path: Path) -> None:
    """Open a model and touch everything its header offers."""
    model = open_model(path)
    if model.format == "gguf":
        Tokenizer.from_gguf(model.metadata, source=str(path))
        for value in model.metadata.values():
            if isinstance(value, GGUFArray):
                assert len(value.to_list()) == len(value)
    with TensorReader() as reader:
        for tensor in model.tensors.values():
            assert reader.read(tensor).nbytes == tensor.nbytes


def header_nbytes(path: Path) -> int:
    if path.suffix == ".safetensors":
        return 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return min(t.offset for t in GGUFFile.open(path).tensors.values())


def with_header_damaged(path: Path, seed: int) -> bytes:
    good, n = path.read_bytes(), header_nbytes(path)
    return damaged(good[:n], seed) + good[n:]


def run_cases(
    n_cases: int, first_seed: int, opened: Path, file: Path, damage: Callable[[int], bytes]
) -> None:
    """Write `damage(seed)` to `file` and open the model at `opened`, for every seed."""
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    n_refused = 0
    for seed in range(first_seed, first_seed + n_cases):
        content = damage(seed)
        file.unlink(missing_ok=True)  # never truncate what is still mapped
        file.write_bytes(content)
        try:
            use_all_of(opened)
        except CapaxError as error:
            n_refused += 1
            shown = str(error)
            if not shown or len(shown) > 2_000:
                raise AssertionError(f"seed {seed}: message of {len(shown)} letters") from error
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} instead of a CapaxError") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak - peak_before < MAX_RSS_GROWTH_NBYTES
    assert n_cases // 10 < n_refused <= n_cases  # the damage does damage


def fuzz_gguf(tmp_path: Path, n_cases: int, first_seed: int = 0) -> None:
    good = [gguf_model(family, num_hidden_layers=1) for family in FAMILY_NAMES]
    good.append(gguf_model("llama", rope=LLAMA3_ROPE, num_hidden_layers=1))
    path = tmp_path / "m.gguf"
    run_cases(
        n_cases, first_seed, path, path, lambda seed: with_header_damaged(good[seed % 5], seed)
    )


def fuzz_directory(
    tmp_path: Path, n_cases: int, name: str, damage: Callable[[bytes, int], bytes]
) -> None:
    source = hf_model("qwen3", num_hidden_layers=1)
    folder = Path(shutil.copytree(source, tmp_path / "m"))
    if name == "model.safetensors":
        run_cases(
            n_cases, 0, folder, folder / name, lambda seed: with_header_damaged(source / name, seed)
        )
    else:
        good = (source / name).read_bytes()
        run_cases(n_cases, 0, folder, folder / name, lambda seed: damage(good, seed))


DIRECTORY_FILES = [
    ("model.safetensors", damaged),
    ("config.json", damaged),
    ("config.json", changed_json),
    ("tokenizer_config.json", damaged),
    ("generation_config.json", changed_json),
]


def test_damaged_gguf_headers(tmp_path: Path) -> None:
    fuzz_gguf(tmp_path, N_CASES)


@pytest.mark.parametrize(("name", "damage"), DIRECTORY_FILES[:3])
def test_damaged_directories(
    tmp_path: Path, name: str, damage: Callable[[bytes, int], bytes]
) -> None:
    fuzz_directory(tmp_path, N_CASES // 2, name, damage)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_gguf_headers_at_length(tmp_path: Path) -> None:
    fuzz_gguf(tmp_path, N_CASES_SLOW, first_seed=N_CASES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "damage"), DIRECTORY_FILES)
def test_damaged_directories_at_length(
    tmp_path: Path, name: str, damage: Callable[[bytes, int], bytes]
) -> None:
    fuzz_directory(tmp_path, N_CASES_SLOW // 5, name, damage)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_damaged_header_of_a_real_model(tmp_path: Path, smollm2: Path) -> None:
    """SmolLM2's own header before a hole of the right size: sparse, so quickly written."""
    n = header_nbytes(smollm2)
    header, file_nbytes = smollm2.read_bytes()[:n], smollm2.stat().st_size
    n_refused = 0
    for seed in range(300):
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(damaged(header, seed))
        os.truncate(path, max(path.stat().st_size, file_nbytes))
        try:
            open_model(path)
        except CapaxError:
            n_refused += 1
        path.unlink()
    assert n_refused > 30  # most of this header is vocabulary, where a letter may change
