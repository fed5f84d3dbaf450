"""safetensors: we accept what the `safetensors` package accepts, and see the same bytes."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from capax.errors import FileFormatError
from capax.files.safetensors import DTYPE_BITS, SafetensorsFile, open_directory
from capax.files.tensors import TensorReader, read_float32
from tests.hostile.safetensors_builder import (
    DUPLICATES,
    GOOD,
    MUTATIONS,
    Mutation,
    build,
    one,
)


def package_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


def we_accept(path: Path, content: bytes) -> bool:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        SafetensorsFile.open(path)
    except FileFormatError:
        return False
    return True


def test_bytes_and_shapes_are_those_of_the_package(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "f32": rng.standard_normal((3, 5), np.float32),
        "f16": rng.standard_normal((2, 2, 2)).astype(np.float16),
        "scalar": np.array(1.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
        "ids": np.arange(6),
    }
    path = tmp_path / "a.safetensors"
    save_file(arrays, path, metadata={"format": "np", "ü": "日本"})
    file = SafetensorsFile.open(path)
    assert file.metadata == {"format": "np", "ü": "日本"}
    assert file.file_nbytes == path.stat().st_size
    loaded = load_file(path)
    assert file.tensors.keys() == loaded.keys()
    with TensorReader() as reader:
        for name in ("f32", "f16", "scalar", "empty"):
            info = file.tensors[name].to_tensor_info("canonical")
            assert info.name == "canonical"
            assert np.array_equal(read_float32(reader, info), loaded[name].astype(np.float32))
    with pytest.raises(FileFormatError, match=r"'ids' has dtype I64; capax reads F32, F16"):
        file.tensors["ids"].to_tensor_info("ids")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_damage_is_refused_by_us_and_by_the_package(tmp_path: Path, mutation: Mutation) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(mutation.content)
    with pytest.raises(FileFormatError, match=mutation.message) as caught:
        SafetensorsFile.open(path)
    assert "evil.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not package_accepts(mutation.content)


@pytest.mark.parametrize("mutation", DUPLICATES, ids=lambda m: m.name)
def test_equal_names_are_refused(tmp_path: Path, mutation: Mutation) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(mutation.content)
    with pytest.raises(FileFormatError, match=mutation.message):
        SafetensorsFile.open(path)


ODD_BUT_LEGAL = [
    build(),
    build(b"{}", data_nbytes=0),
    build(b"{}   ", data_nbytes=0),
    build(json.dumps(one()).encode() + b" " * 100, data_nbytes=16),
    build({**one(), "__metadata__": None}, data_nbytes=16),
    build({"w": {**one()["w"], "comment": [1, {}]}}, data_nbytes=16),  # type: ignore[dict-item]  # a dict
    build(one(shape=[], data_offsets=[0, 4]), data_nbytes=4),
    build(one(shape=[0, 2**64 - 1], data_offsets=[0, 0]), data_nbytes=0),
    build(one(dtype="F4", shape=[32]), data_nbytes=16),
    build({"": one()["w"]}, data_nbytes=16),
    build(b"\n" + json.dumps(one()).encode(), data_nbytes=16),
    build(b"\xef\xbb\xbf" + json.dumps(one()).encode(), data_nbytes=16),
    build(json.dumps(one()).encode() + b"\0", data_nbytes=16),
    build(b'{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', data_nbytes=0),
    build(b'{"w":{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}}', data_nbytes=16),
    build(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', data_nbytes=16),
    build(one(shape=[2**63, 0], data_offsets=[0, 0]), data_nbytes=0),
    build(one(shape=[2**63, 2**63, 0], data_offsets=[0, 0]), data_nbytes=0),
]


@pytest.mark.parametrize("content", ODD_BUT_LEGAL, ids=range(len(ODD_BUT_LEGAL)))
def test_odd_files_get_the_verdict_of_the_package(tmp_path: Path, content: bytes) -> None:
    assert we_accept(tmp_path / "odd.safetensors", content) == package_accepts(content)


def test_every_dtype_gets_the_verdict_of_the_package(tmp_path: Path) -> None:
    for dtype, n_bits in DTYPE_BITS.items():
        content = build(one(dtype=dtype, shape=[8], data_offsets=[0, n_bits]), data_nbytes=n_bits)
        assert we_accept(tmp_path / "a.safetensors", content) == package_accepts(content), dtype


sizes = st.integers(0, 9) | st.sampled_from([-1, 2**31, 2**63, 2**64 - 1, 2**64, 1.0, True, None])
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*DTYPE_BITS, "F33", 3, None]),
        "shape": st.lists(sizes, max_size=4) | st.just("x"),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | st.lists(sizes, max_size=3),
        "other": st.none(),
    },
)
headers = st.dictionaries(st.text(max_size=3), entries | st.integers(), max_size=3)


@st.composite
def almost_good_headers(draw: st.DrawFn) -> tuple[dict[str, object], int]:
    """Lay tensors out correctly, then perhaps change one number."""
    header: dict[str, object] = {}
    at = 0
    for i in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(list(DTYPE_BITS)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        n_bits = DTYPE_BITS[dtype] * int(np.prod(shape, dtype=int))
        end = at + n_bits // 8 + draw(st.sampled_from([0] * 9 + [1]))
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end + draw(st.sampled_from([0] * 9 + [1]))
    names = list(header)
    draw(st.randoms(use_true_random=False)).shuffle(names)
    return {n: header[n] for n in names}, at


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=almost_good_headers() | st.tuples(headers, st.integers(0, 64)))
@example(case=(GOOD, 22))
def test_verdict_equals_that_of_the_package(
    tmp_path: Path, case: tuple[dict[str, object], int]
) -> None:
    header, data_nbytes = case
    content = build(header, data_nbytes=data_nbytes)
    assert we_accept(tmp_path / "a.safetensors", content) == package_accepts(content)


def test_flipped_bits_get_the_verdict_of_the_package(tmp_path: Path) -> None:
    good = build()
    rng = random.Random(4)
    n_accepted = 0
    for _ in range(1_500):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            bad[rng.randrange(len(bad) - 22)] = rng.choice(b'0123456789{}[],:" abFU\xff\x00')
        ours, theirs = (
            we_accept(tmp_path / "a.safetensors", bytes(bad)),
            package_accepts(bytes(bad)),
        )
        n_accepted += theirs
        if ours != theirs:
            with pytest.raises(FileFormatError, match="appears twice"):
                SafetensorsFile.open(tmp_path / "a.safetensors")
    assert 50 < n_accepted < 1_450  # both verdicts occur


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    good = build()
    for n in range(len(good)):
        assert not we_accept(tmp_path / f"{n}.safetensors", good[:n])


# --- directories ----------------------------------------------------------------------


def write_sharded(folder: Path) -> dict[str, str]:
    save_file({"a": np.zeros(2, np.float32)}, folder / "s1.safetensors")
    save_file({"b": np.ones(2, np.float32)}, folder / "s2.safetensors")
    return {"a": "s1.safetensors", "b": "s2.safetensors"}


def write_index(folder: Path, weight_map: object) -> None:
    content = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def test_shards_are_joined(tmp_path: Path) -> None:
    write_index(tmp_path, write_sharded(tmp_path))
    tensors, nbytes = open_directory(tmp_path)
    assert {n: t.path.name for n, t in tensors.items()} == write_sharded(tmp_path)
    assert nbytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))


def test_a_whole_file_wins_over_an_index_as_with_transformers(tmp_path: Path) -> None:
    write_index(tmp_path, write_sharded(tmp_path))
    save_file({"whole": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(open_directory(tmp_path)[0]) == ["whole"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": "../s1.safetensors"}, r"places tensor 'a' in '\.\./s1\.safetensors'; shards are"),
        ({"a": "/etc/s1.safetensors"}, "in the index's own folder"),
        ({"a": "sub\\s1.safetensors"}, "in the index's own folder"),
        ({"a": "s1.bin"}, "in the index's own folder"),
        ({"a": 5}, "places tensor 'a' in 5"),
        ({"a": "s1.safetensors\0"}, "in the index's own folder"),
        ({"c": "s1.safetensors"}, r"places tensor 'c' in 's1\.safetensors', which does not hold"),
        (
            {"a": "s2.safetensors", "b": "s1.safetensors"},
            "holds tensor 'b', which .* places in 's1",
        ),
        ({"b": "s3.safetensors"}, "cannot open .*s3"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_index(tmp_path, {**write_sharded(tmp_path), **changes})
    with pytest.raises(FileFormatError, match=message):
        open_directory(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], "a"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_index(tmp_path, weight_map)
    with pytest.raises(FileFormatError, match="weight_map is missing, empty or not an object"):
        open_directory(tmp_path)


def test_a_directory_with_pickles_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FileFormatError, match=r"holds neither model\.safetensors nor"):
        open_directory(tmp_path)
