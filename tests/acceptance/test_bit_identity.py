"""Warm = cold = batched, bit for bit: nothing but the tokens before it decides a logit.

Every optimisation is switched on and off; the logits must be equal in every bit. The last
tests break the promise on purpose and see that the comparison notices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from capax import LLM, _native
from capax.kv import PagedKVCache, PagePool
from capax.models import Model, ModelTensors, SequenceSlice, Step
from tests.models import VOCAB_SIZE, gguf_model, hf_model

N_TOKENS = 200
ISAS = [name for name, _ in _native.supported_isas()]
MODELS = {
    "llama-F32": lambda: hf_model("llama"),
    "llama-Q8_0": lambda: gguf_model("llama", encoding="Q8_0"),
    "llama-Q4_1": lambda: gguf_model("llama", encoding="Q4_1"),
    "mistral-window": lambda: gguf_model("mistral", encoding="Q4_0"),
    "qwen2-bias": lambda: gguf_model("qwen2", encoding="Q8_0"),
    "qwen3-qknorm": lambda: gguf_model("qwen3", encoding="Q5_1"),
}


@pytest.fixture(params=MODELS)
def path(request: pytest.FixtureRequest) -> Path:
    return MODELS[request.param]()


@pytest.fixture
def ids() -> list[int]:
    return [int(t) for t in np.random.default_rng(7).integers(0, VOCAB_SIZE, N_TOKENS)]


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = _native.isa()
    yield
    _native.select_isa(before)


def build(
    path: Path, *, kv: str = "f16", threads: int = 1, pages: int = 64
) -> tuple[Model, PagePool]:
    from capax.files.model_file import open_model

    file = open_model(path)
    model = Model(
        file.config,
        ModelTensors(file),
        context_len=file.config.context_len,
        max_tokens=512,
        max_logit_rows=16,
        n_threads=threads,
    )
    return model, PagePool(file.config, kv, pages)


def feed(model: Model, cache: PagedKVCache, tokens: list[int]) -> np.ndarray:
    """Run tokens as one chunk; returns the logits of the last one."""
    cache.reserve(len(tokens))
    rows = np.array([len(tokens) - 1], np.int32)
    step = Step(np.array(tokens, np.int32), [SequenceSlice(cache, 0, len(tokens))], rows)
    return model.forward(step)[0].copy()


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_chunking_the_prompt_changes_no_bit(path: Path, ids: list[int], kv: str) -> None:
    llm = LLM(path, kv=kv, threads=1)
    whole = llm.logits(ids)
    for chunk in (1, 7, 64):
        assert np.array_equal(whole, llm.logits(ids, chunk=chunk)), f"chunk {chunk}"


def test_threads_change_no_bit(path: Path, ids: list[int]) -> None:
    one = LLM(path, threads=1).logits(ids)
    for threads in (2, 3):
        assert np.array_equal(one, LLM(path, threads=threads).logits(ids))
        assert np.array_equal(one[:40], LLM(path, threads=threads).logits(ids[:40], chunk=1))


def test_fork_and_truncate_change_no_bit(path: Path, ids: list[int]) -> None:
    model, pool = build(path)
    cache = PagedKVCache(pool)
    cold = feed(model, cache, ids)

    warm = PagedKVCache(pool)
    feed(model, warm, ids[:130])
    other = warm.fork()
    feed(model, other, [1, 2, 3] * 30)  # writes into what was shared
    assert np.array_equal(cold, feed(model, warm, ids[130:]))

    other.truncate(100)
    assert np.array_equal(cold, feed(model, other, ids[100:]))


def test_exported_and_loaded_cache_changes_no_bit(path: Path, ids: list[int]) -> None:
    model, pool = build(path)
    cold = feed(model, PagedKVCache(pool), ids)
    cache = PagedKVCache(pool)
    feed(model, cache, ids[:150])
    restored = PagedKVCache(pool)
    restored.load(cache.export())
    assert np.array_equal(cold, feed(model, restored, ids[150:]))


@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_in_the_batch_change_no_bit(path: Path, ids: list[int], threads: int) -> None:
    model, pool = build(path, threads=threads)
    alone = feed(model, PagedKVCache(pool), ids)

    caches = [PagedKVCache(pool) for _ in range(4)]
    feed(model, caches[0], ids[:90])
    feed(model, caches[1], ids[:199])
    feed(model, caches[2], [5, 6, 7])
    parts = [ids[90:], ids[199:], [8], list(range(33))]
    tokens: list[int] = []
    slices = []
    for cache, part in zip(caches, parts, strict=True):
        cache.reserve(len(part))
        slices.append(SequenceSlice(cache, len(tokens), len(tokens) + len(part)))
        tokens += part
    rows = np.array([slices[0].end - 1, slices[1].end - 1], np.int32)
    logits = model.forward(Step(np.array(tokens, np.int32), slices, rows))
    assert np.array_equal(alone, logits[0])
    assert np.array_equal(alone, logits[1])


def test_every_instruction_set_gives_the_same_bits(
    path: Path, ids: list[int], restore_isa: None
) -> None:
    if len(ISAS) < 2:
        pytest.skip("this CPU runs one instruction set only")
    model, pool = build(path)
    results = {}
    for isa in ISAS:
        assert _native.select_isa(isa)
        results[isa] = feed(model, PagedKVCache(pool), ids[:70])
    for isa in ISAS[1:]:
        assert np.array_equal(results[ISAS[0]], results[isa]), f"{ISAS[0]} differs from {isa}"


def test_streamed_weights_change_no_bit(path: Path, ids: list[int]) -> None:
    from capax.files.model_file import open_model

    file = open_model(path)
    results = []
    for residency in ("packed", "streamed"):
        where = dict.fromkeys(file.tensors, residency)
        model = Model(
            file.config,
            ModelTensors(file, where),  # type: ignore[arg-type]
            context_len=256,
            max_tokens=256,
            max_logit_rows=1,
            n_threads=2,
        )
        results.append(feed(model, PagedKVCache(PagePool(file.config, "f16", 8)), ids))
    assert np.array_equal(*results)


def test_a_cache_outside_the_program_changes_no_bit(path: Path, ids: list[int]) -> None:
    model, pool = build(path)
    cold = feed(model, PagedKVCache(pool), ids)
    paged = PagedKVCache(pool)

    class Outside:
        """Delegates to a paged cache without being one."""

        def __getattr__(self, name: str) -> object:
            return getattr(paged, name)

    outside = Outside()
    feed(model, outside, ids[:100])  # type: ignore[arg-type]
    assert np.array_equal(cold, feed(model, outside, ids[100:]))  # type: ignore[arg-type]


def test_negative_control_another_order_of_pages_is_seen(ids: list[int]) -> None:
    """Swapping two full pages permutes the keys: equal sums on paper, other bits here."""
    model, pool = build(hf_model("llama", rope={"rope_type": "default", "rope_theta": 1e4}))
    cold = feed(model, PagedKVCache(pool), ids)
    cache = PagedKVCache(pool)
    feed(model, cache, ids[:199])
    table = cache.page_table
    table[0], table[1] = int(table[1]), int(table[0])
    swapped = feed(model, cache, ids[199:])
    np.testing.assert_allclose(swapped, cold, rtol=1e-3, atol=1e-3)
    assert not np.array_equal(swapped, cold)


def test_negative_control_one_dropped_key_is_seen(ids: list[int]) -> None:
    model, pool = build(hf_model("llama"))
    cold = feed(model, PagedKVCache(pool), ids)
    cache = PagedKVCache(pool)
    feed(model, cache, ids[:199])
    pages = cache.page_table
    content = bytearray(pool.native.read(int(pages[1])))
    content[0] ^= 1
    pool.native.write(int(pages[1]), bytes(content))
    assert not np.array_equal(cold, feed(model, cache, ids[199:]))
