"""The formulas against what the runtime really takes."""

from pathlib import Path

import numpy as np
import pytest

from capax.files.encodings import ENCODINGS
from capax.files.gguf import GGUFFile, TensorData, write_gguf
from capax.files.model_file import ModelFile, open_model
from capax.kv import KV_TYPES, KVType, PagedKVCache, PagePool, kv_method
from capax.models import Model, ModelTensors, SequenceSlice, Step
from capax.planning.footprint import (
    Shape,
    footprint,
    kv_nbytes,
    matrix_names,
    scratch_nbytes,
    stream_buffer_nbytes,
    streaming_nbytes,
    weights_nbytes,
)
from capax.weights import load_weight
from tests.models import gguf_model
from tests.planning.imaginary import imaginary_model

SIZES = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 2000}
# What the formulas may exceed reality by: they are bounds, but a loose bound wastes a budget.
SLACK = 1.15


def model_of(encoding: str) -> ModelFile:
    return open_model(gguf_model("llama", encoding=encoding, **SIZES))


def shape(**choices: object) -> Shape:
    given = {
        "context_len": 256,
        "kv": "f16",
        "threads": 2,
        "prefill_chunk": 64,
        "n_sequences": 1,
        "logit_rows": 4,
        **choices,
    }
    return Shape(**given)  # type: ignore[arg-type]


def run_a_step(model: ModelFile, s: Shape) -> tuple[Model, PagePool]:
    """Load the model in this shape and fill its context once."""
    residency = {n: "streamed" if n in s.streamed else "packed" for n in matrix_names(model)}
    tensors = ModelTensors(model, residency, s.threads)  # type: ignore[arg-type]
    engine = Model(
        model.config,
        tensors,
        context_len=s.context_len,
        max_tokens=s.prefill_chunk,
        max_logit_rows=s.logit_rows,
        n_threads=s.threads,
    )
    pool = kv_method(s.kv).open(model, s.context_len // 64, 1)
    assert isinstance(pool, PagePool)
    cache = PagedKVCache(pool)
    for begin in range(0, s.context_len, s.prefill_chunk):
        tokens = np.arange(begin, begin + s.prefill_chunk, dtype=np.int32)
        cache.reserve(len(tokens))
        rows = np.arange(s.logit_rows, dtype=np.int32)
        engine.forward(Step(tokens, [SequenceSlice(cache, 0, len(tokens))], rows))
    cache.close()
    return engine, pool


@pytest.mark.parametrize("encoding", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("streams", [False, True])
def test_weights_and_scratch_are_bounded_by_the_plan(encoding: str, streams: bool) -> None:
    model = model_of(encoding)
    s = shape(streamed=frozenset(matrix_names(model)) if streams else frozenset())
    engine, _ = run_a_step(model, s)
    planned = scratch_nbytes(model, s) + streaming_nbytes(model, s.streamed, s.threads)
    assert engine.scratch_nbytes <= planned
    assert planned < SLACK * engine.scratch_nbytes + 2 * 64 * 1024
    assert engine.weights_nbytes <= weights_nbytes(model, s.streamed)


@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_full_kv_cache_takes_what_is_planned(kv: KVType) -> None:
    model = model_of("Q8_0")
    _, pool = run_a_step(model, shape(kv=kv))
    assert pool.nbytes == kv_nbytes(model.config, shape(kv=kv))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_the_buffer_of_a_streamed_matrix_is_the_runtimes(tmp_path: Path, encoding: str) -> None:
    e = ENCODINGS[encoding]
    for n_out, n_in in ((1, 256), (40, 512), (3000, 1024)):
        path = tmp_path / f"{n_out}.gguf"
        raw = np.zeros(n_out * n_in // e.block_len * e.block_nbytes, np.uint8)
        write_gguf(path, {}, [TensorData("a", (n_out, n_in), e, raw)])
        tensor = GGUFFile.open(path).tensors["a"]
        model = imaginary_model(n_layers=1)
        model.tensors["a"] = tensor  # type: ignore[index]  # a dictionary in this model
        assert stream_buffer_nbytes(model, "a") == pytest.approx(
            load_weight(tensor, "streamed").scratch_nbytes, abs=64
        )
        assert stream_buffer_nbytes(model, "a") >= load_weight(tensor, "streamed").scratch_nbytes


def test_the_parts_add_up_to_the_total() -> None:
    f = footprint(imaginary_model(), shape(context_len=2048))
    assert f.total == f.weights + f.streaming + f.kv + f.scratch + f.tokenizer + f.base
    assert f.to_json()["total"] == f.total


def test_each_sequence_needs_its_own_context() -> None:
    model = imaginary_model()
    one = footprint(model, shape(context_len=2048))
    two = footprint(model, shape(context_len=2048, n_sequences=2))
    assert two.kv == 2 * one.kv
