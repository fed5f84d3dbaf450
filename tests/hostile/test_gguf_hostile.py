"""Every lie a GGUF file can tell ends in one clear sentence, in little time and memory."""

import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from capax.errors import FileFormatError
from capax.files.gguf import GGUFArray, GGUFFile
from capax.files.model_file import open_model
from tests.hostile.gguf_builder import (
    ARRAY,
    GOOD_TENSORS,
    MUTATIONS,
    U8,
    Mutation,
    Tensor,
    array,
    build,
    kv,
    text,
    u32,
    u64,
)
from tests.models import gguf_model


def test_the_builder_without_mutation_makes_a_good_file(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"v{version}.gguf"
        path.write_bytes(build(version=version))
        file = GGUFFile.open(path)
        assert list(file.tensors) == ["w", "v"]
        assert file.tensors["w"].shape == (4, 8)
        assert file.tensors["v"].offset == file.tensors["w"].offset + 128
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, GGUFArray)
        assert tokens.to_list() == ["a", "bc", ""]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_lies_are_refused_by_name(tmp_path: Path, mutation: Mutation) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(mutation.content)
    start = time.process_time()
    with pytest.raises(FileFormatError, match=mutation.message) as caught:
        GGUFFile.open(path)
    assert time.process_time() - start < 0.05
    assert "evil.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600

    tracemalloc.start()
    with pytest.raises(FileFormatError):
        GGUFFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_mutation_names_are_unique() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) > 200


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    good = build()
    for n in range(len(good)):
        path = tmp_path / f"{n}.gguf"
        path.write_bytes(good[:n])
        with pytest.raises(FileFormatError, match=rf"{n}\.gguf"):
            GGUFFile.open(path)
        path.unlink()


def test_a_real_model_cut_at_random_points_is_refused(tmp_path: Path) -> None:
    good = gguf_model("llama").read_bytes()
    rng = random.Random(20)
    points = [rng.randrange(len(good)) for _ in range(200)]
    points += [t.offset + t.nbytes - 1 for t in GGUFFile.open(gguf_model("llama")).tensors.values()]
    for n in points:
        path = tmp_path / f"{n}.gguf"
        path.write_bytes(good[:n])
        with pytest.raises(FileFormatError, match=rf"{n}\.gguf"):
            open_model(path)
        path.unlink()


def test_headers_that_claim_much_for_little_stay_small(tmp_path: Path) -> None:
    """A megabyte of empty strings is a megabyte, not an object per claimed item."""
    path = tmp_path / "a.gguf"
    count = 1 << 17
    path.write_bytes(build(pairs=(kv(b"x", ARRAY, array(8, count, u64(0) * count)),)))
    tracemalloc.start()
    file = GGUFFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file.metadata["x"]) == count  # type: ignore[arg-type]  # an array
    assert peak < 2 << 20


def test_a_header_of_more_than_256_mib_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    count = 300 << 20
    start = build(
        pairs=(text(b"x") + u32(ARRAY) + u32(U8) + u64(count),), tensors=(), data_nbytes=0
    )
    path.write_bytes(start)
    os.truncate(path, len(start) + count)  # a hole: takes no disk
    tracemalloc.start()
    with pytest.raises(FileFormatError, match=r"value of 'x' .* takes the header to 314,5"):
        GGUFFile.open(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "content",
    [
        build(pairs=(), tensors=(), data_nbytes=0),
        build(tensors=(Tensor(dims=(0, 2**40, 2**40)),), data_nbytes=0),
        build(tensors=(Tensor(dims=()),), data_nbytes=4),
        build(tensors=tuple(reversed(GOOD_TENSORS))),
        build(pairs=(kv(b"x", ARRAY, array(U8, 0, b"")),)),
        build(data_nbytes=10_000),
    ],
    ids=["nothing", "no numbers", "a scalar", "not in order", "empty array", "bytes behind"],
)
def test_odd_but_legal_files_open(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.gguf").write_bytes(content)
    GGUFFile.open(tmp_path / "odd.gguf")
