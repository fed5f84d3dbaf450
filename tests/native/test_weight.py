"""Weights: packed and streamed, their sizes, their rows, and what they refuse."""

import os
from pathlib import Path

import numpy as np
import pytest

from capax import _native
from tests.native.encoded import ENCODINGS, random_matrix, reference_rows

N_OUT, N_IN = 75, 512


def file_with(tmp_path: Path, data: bytes, before: int = 100) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\xff" * before + data + b"\xff" * 50)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_streamed_equals_packed_equals_bytes(encoding: str, tmp_path: Path, isa: str) -> None:
    data = random_matrix(encoding, N_OUT, N_IN, np.random.default_rng(0))
    path = file_with(tmp_path, data)
    x = np.random.default_rng(1).standard_normal((21, N_IN)).astype(np.float32)
    want = _native.Weight.from_bytes(data, encoding, N_OUT, N_IN)
    for residency in ("packed", "streamed"):
        weight = _native.Weight.from_file(
            str(path), 100, len(data), encoding, N_OUT, N_IN, residency
        )
        assert weight.residency == residency
        assert weight.matmul(x).tobytes() == want.matmul(x).tobytes()
        assert weight.dequantize().tobytes() == want.dequantize().tobytes()


def test_a_streamed_weight_larger_than_one_read_equals_packed(tmp_path: Path) -> None:
    n_out, n_in = 3000, 512  # 1.0 MB: several reads of 256 KiB
    data = random_matrix("Q4_1", n_out, n_in, np.random.default_rng(0))
    path = file_with(tmp_path, data, 3)
    x = np.random.default_rng(1).standard_normal((2, n_in)).astype(np.float32)
    packed = _native.Weight.from_file(str(path), 3, len(data), "Q4_1", n_out, n_in)
    streamed = _native.Weight.from_file(str(path), 3, len(data), "Q4_1", n_out, n_in, "streamed")
    assert 0 < streamed.scratch_nbytes < 1 << 20
    assert streamed.matmul(x).tobytes() == packed.matmul(x).tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_equal_dequantised_rows(encoding: str, tmp_path: Path) -> None:
    data = random_matrix(encoding, N_OUT, N_IN, np.random.default_rng(2))
    path = file_with(tmp_path, data)
    want = reference_rows(encoding, data, N_OUT, N_IN)
    indices = np.array([0, 74, 15, 16, 17, 17, 3], dtype=np.int64)
    for residency in ("packed", "streamed"):
        weight = _native.Weight.from_file(
            str(path), 100, len(data), encoding, N_OUT, N_IN, residency
        )
        assert weight.rows(indices).tobytes() == want[indices].tobytes()
        assert weight.rows(indices.astype(np.int32)).tobytes() == want[indices].tobytes()
        assert weight.dequantize().tobytes() == want.tobytes()


def test_nbytes_is_what_the_planner_is_told(tmp_path: Path) -> None:
    for encoding in ENCODINGS:
        data = random_matrix(encoding, N_OUT, N_IN, np.random.default_rng(0))
        weight = _native.Weight.from_bytes(data, encoding, N_OUT, N_IN)
        assert weight.nbytes == _native.Weight.packed_nbytes(encoding, N_OUT, N_IN)
        assert weight.file_nbytes == len(data)
        # 75 rows pad to 80; Q2_K..Q5_K widen their 4- and 6-bit scales to bytes.
        assert len(data) <= weight.nbytes <= 1.04 * len(data) * 80 / 75
        streamed = _native.Weight.from_file(
            str(file_with(tmp_path, data)), 100, len(data), encoding, N_OUT, N_IN, "streamed"
        )
        assert streamed.nbytes == 0


def test_weights_share_an_arena_until_it_is_full() -> None:
    data = random_matrix("Q4_1", 64, 512, np.random.default_rng(0))
    nbytes = _native.Weight.packed_nbytes("Q4_1", 64, 512)
    arena = _native.WeightArena(2 * nbytes)
    first = _native.Weight.from_bytes(data, "Q4_1", 64, 512, arena)
    second = _native.Weight.from_bytes(data, "Q4_1", 64, 512, arena)
    assert arena.used == 2 * nbytes
    assert first.dequantize().tobytes() == second.dequantize().tobytes()
    with pytest.raises(ValueError, match="does not fit the arena"):
        _native.Weight.from_bytes(data, "Q4_1", 64, 512, arena)


def test_a_weight_outlives_the_name_of_its_arena() -> None:
    data = random_matrix("Q8_0", 64, 512, np.random.default_rng(0))
    arena = _native.WeightArena(_native.Weight.packed_nbytes("Q8_0", 64, 512))
    weight = _native.Weight.from_bytes(data, "Q8_0", 64, 512, arena)
    del arena
    assert weight.dequantize().tobytes() == reference_rows("Q8_0", data, 64, 512).tobytes()


@pytest.mark.parametrize(
    ("encoding", "n_out", "n_in", "nbytes"),
    [
        ("Q4_1", 16, 32, 319),
        ("Q4_1", 16, 32, 321),
        ("Q4_1", 16, 33, 320),
        ("Q4_1", 0, 32, 0),
        ("Q4_1", 16, 0, 0),
        ("Q4_1", -16, -32, 320),
        ("Q4_1", 2**62, 32, 320),
        ("Q4_1", 2**31, 2**31, 320),
        ("Q6_K", 16, 32, 420),
        ("F32", 2**31, 2**31, 16),
        ("Q9_9", 16, 32, 320),
    ],
)
def test_sizes_that_disagree_are_refused(
    encoding: str, n_out: int, n_in: int, nbytes: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"matrix|encoding"):
        _native.Weight.from_bytes(bytes(nbytes), encoding, n_out, n_in)
    path = file_with(tmp_path, bytes(nbytes))
    with pytest.raises(ValueError, match=r"matrix|encoding"):
        _native.Weight.from_file(str(path), 100, nbytes, encoding, n_out, n_in)


def test_a_range_outside_the_file_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path, bytes(320))
    with pytest.raises(OSError, match="ends behind the file's 470 bytes"):
        _native.Weight.from_file(str(path), 200, 320, "Q4_1", 16, 32)
    with pytest.raises(OSError, match="ends behind"):
        _native.Weight.from_file(str(path), 2**62, 320, "Q4_1", 16, 32)
    with pytest.raises(ValueError, match="negative"):
        _native.Weight.from_file(str(path), -1, 320, "Q4_1", 16, 32)
    with pytest.raises(OSError, match="cannot open"):
        _native.Weight.from_file(str(path) + ".missing", 0, 320, "Q4_1", 16, 32)
    with pytest.raises(ValueError, match="residency"):
        _native.Weight.from_file(str(path), 0, 320, "Q4_1", 16, 32, "mapped")


def test_a_file_cut_while_streamed_is_an_error_with_path_and_offset(tmp_path: Path) -> None:
    data = random_matrix("Q4_1", 64, 512, np.random.default_rng(0))
    path = file_with(tmp_path, data)
    weight = _native.Weight.from_file(str(path), 100, len(data), "Q4_1", 64, 512, "streamed")
    x = np.ones((1, 512), dtype=np.float32)
    weight.matmul(x)
    os.truncate(path, 5000)
    with pytest.raises(_native.WeightReadError, match=r"weights\.bin' at byte 5000 .*truncated"):
        weight.matmul(x)
    with pytest.raises(_native.WeightReadError, match="truncated"):
        weight.rows(np.array([63]))


def test_streamed_weights_of_one_file_share_a_descriptor(tmp_path: Path) -> None:
    data = random_matrix("Q4_1", 16, 512, np.random.default_rng(0))
    path = file_with(tmp_path, data)
    before = len(os.listdir("/proc/self/fd"))
    weights = [
        _native.Weight.from_file(str(path), 100, len(data), "Q4_1", 16, 512, "streamed")
        for _ in range(20)
    ]
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del weights
    assert len(os.listdir("/proc/self/fd")) == before


def test_operands_of_wrong_shape_or_type_are_refused() -> None:
    weight = _native.Weight.from_bytes(bytes(320), "Q4_1", 16, 32)
    with pytest.raises(ValueError, match="x has 64 columns"):
        weight.matmul(np.zeros((1, 64), dtype=np.float32))
    with pytest.raises(TypeError):
        weight.matmul(np.zeros((2, 2, 32), dtype=np.float32))
    with pytest.raises(IndexError, match="row 16 is outside"):
        weight.rows(np.array([3, 16]))
    with pytest.raises(IndexError, match="row -1 is outside"):
        weight.rows(np.array([-1]))
    with pytest.raises(ValueError, match="y must be"):
        weight.matmul_groups(np.zeros((1, 32), np.float32), np.zeros((1, 15), np.float32), 0, 1)
    with pytest.raises(ValueError, match="groups 0 to 2"):
        weight.matmul_groups(np.zeros((1, 32), np.float32), np.zeros((1, 16), np.float32), 0, 2)
    for copied in (np.zeros((1, 16)), np.zeros((1, 32), np.float32)[:, ::2]):  # its result lost
        with pytest.raises(TypeError):
            weight.matmul_groups(np.zeros((1, 32), np.float32), copied, 0, 1)


def test_no_tokens_and_no_rows_give_empty_results() -> None:
    weight = _native.Weight.from_bytes(bytes(320), "Q4_1", 16, 32)
    assert weight.matmul(np.zeros((0, 32), dtype=np.float32)).shape == (0, 16)
    assert weight.rows(np.array([], dtype=np.int64)).shape == (0, 32)


@pytest.mark.parametrize("threads", [1, 3])
def test_packing_many_weights_at_once_equals_one_by_one(tmp_path: Path, threads: int) -> None:
    n_out, n_in = 3000, 512  # 1.0 MB: several pieces
    data = random_matrix("Q4_1", n_out, n_in, np.random.default_rng(0))
    where = (str(file_with(tmp_path, data, 3)), 3, len(data), "Q4_1", n_out, n_in)
    arena = _native.WeightArena(2 * _native.Weight.packed_nbytes("Q4_1", n_out, n_in))
    weights = [
        _native.Weight.from_file(*where, residency, arena if residency == "packed" else None, False)
        for residency in ("packed", "streamed", "packed")
    ]
    _native.pack_weights(weights, threads)
    want = _native.Weight.from_file(*where).dequantize().tobytes()
    assert all(weight.dequantize().tobytes() == want for weight in weights)


def test_packing_a_file_that_shrank_is_an_error(tmp_path: Path) -> None:
    data = random_matrix("Q4_1", 3000, 512, np.random.default_rng(0))
    path = file_with(tmp_path, data, 3)
    weight = _native.Weight.from_file(
        str(path), 3, len(data), "Q4_1", 3000, 512, "packed", None, False
    )
    os.truncate(path, len(data) // 2)
    with pytest.raises(_native.WeightReadError, match=r"weights\.bin"):
        _native.pack_weights([weight], 2)
