"""Sequences that share pages are attended together, and no bit of any of them changes.

Shared prefixes of every length around the borders of pages (64) and spans (512), tails of
different lengths, trees of prefixes, neighbours that share nothing, every precision of the cache,
every instruction set, one thread and two: each against the sequence alone, in pages of its own.
"""

from __future__ import annotations

import numpy as np
import pytest

from capax import _native
from capax.kv import PagedKVCache, PagePool
from capax.models import Model, SequenceSlice, Step
from tests.acceptance.test_bit_identity import ISAS, build, feed
from tests.models import VOCAB_SIZE, gguf_model

LENGTHS = [64, 65, 127, 128, 448, 511, 512, 513, 600, 1024, 1100]


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, n).tolist()


def prefilled(model: Model, pool: PagePool, ids: list[int]) -> PagedKVCache:
    cache = PagedKVCache(pool)
    for begin in range(0, len(ids), 512):
        feed(model, cache, ids[begin : begin + 512])
    return cache


def together(model: Model, caches: list[PagedKVCache], new: list[int]) -> np.ndarray:
    """One token for each of several sequences in one step; returns the logits of each."""
    for cache in caches:
        cache.reserve(1)
    slices = [SequenceSlice(cache, i, i + 1) for i, cache in enumerate(caches)]
    rows = np.arange(len(caches), dtype=np.int32)
    return model.forward(Step(np.array(new, np.int32), slices, rows)).copy()


def check(model: Model, pool: PagePool, stem: list[int], tails: list[list[int]]) -> None:
    """Continue the stem with each tail, all at once and each alone."""
    trunk = prefilled(model, pool, stem)
    caches = []
    for tail in tails:
        cache = trunk.fork()
        if tail:
            feed(model, cache, tail)
        caches.append(cache)
    stranger = prefilled(model, pool, tokens(100, 99))
    caches.insert(1, stranger)
    whole = [[*stem, *tail] for tail in tails]
    whole.insert(1, tokens(100, 99))
    new = tokens(len(caches), 5)
    found = together(model, caches, new)
    for cache in (*caches, trunk):
        cache.close()
    for i, ids in enumerate(whole):
        own = prefilled(model, pool, ids)
        alone = together(model, [own], [new[i]])
        own.close()
        assert np.array_equal(found[i], alone[0]), f"sequence {i} of {len(ids)} tokens"


@pytest.mark.parametrize("n", LENGTHS)
def test_prefixes_of_every_length(n: int) -> None:
    model, pool = build(
        gguf_model("llama", encoding="Q8_0", max_position_embeddings=2048), pages=160
    )
    tails = [tokens(k, k + 1) for k in (0, 1, 2, 30, 64, 65, 7)]
    check(model, pool, tokens(n, 1), tails)


@pytest.mark.parametrize("kv", ["f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_precision_and_instruction_set(kv: str, isa: str, threads: int) -> None:
    before = _native.isa()
    try:
        assert _native.select_isa(isa)
        model, pool = build(
            gguf_model("llama", encoding="Q8_0", max_position_embeddings=2048),
            kv=kv, threads=threads, pages=160,
        )  # fmt: skip
        check(model, pool, tokens(570, 1), [tokens(k, k + 1) for k in (0, 3, 70)])
    finally:
        _native.select_isa(before)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_with_and_without_a_window(family: str) -> None:
    model, pool = build(gguf_model(family, encoding="Q8_0"), pages=160)
    check(model, pool, tokens(150, 1), [tokens(k, k + 1) for k in (0, 3, 40)])


def test_more_sequences_than_a_tile_holds() -> None:
    model, pool = build(gguf_model("llama", encoding="Q8_0"), pages=160)
    n_group = model.config.n_heads // model.config.n_kv_heads
    assert 14 * n_group > 24
    check(model, pool, tokens(130, 1), [[i, i] for i in range(14)])


def test_a_tree_of_prefixes() -> None:
    model, pool = build(gguf_model("llama", encoding="Q8_0"), pages=160)
    trunk = tokens(128, 1)
    branches = [tokens(64, seed) for seed in (2, 3)]
    tails = [[*branch, *tokens(k, k + 9)] for branch in branches for k in (1, 5, 9)]
    check(model, pool, trunk, [*tails, tokens(3, 4)])


def test_negative_control_a_wrong_page_is_seen() -> None:
    """The comparison notices when a group reads one page too many as shared."""
    model, pool = build(gguf_model("llama", encoding="Q8_0"), pages=160)
    stem = tokens(128, 1)
    trunk = prefilled(model, pool, stem)
    a, b = trunk.fork(), trunk.fork()
    feed(model, a, tokens(64, 2))
    feed(model, b, tokens(64, 3))
    page = int(a.page_table[2])
    b.replace_page(2, page)  # what a wrong group would read
    found = together(model, [a, b], [5, 6])
    for cache in (a, b, trunk):
        cache.close()
    own = prefilled(model, pool, [*stem, *tokens(64, 3)])
    assert not np.array_equal(found[1], together(model, [own], [6])[0])
