"""Coded caches: positions alone decide what is read from codes, whatever the way to compute."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from capax import _native
from capax.errors import CapacityError, StoreError
from capax.files.model_file import open_model
from capax.kv import CodedKVCache, CodedStore, PagePool, coded_footprint
from capax.kv.quantized import KiviCache
from capax.models import Model, ModelTensors, SequenceSlice, Step
from tests.models import VOCAB_SIZE, hf_model

N_TOKENS = 300
OPTIONS = {
    "int4": KiviCache(),
    "int8-64": KiviCache(bits=8, block=64),
    "int3-pre": KiviCache(bits=3, block=64, keys="pre"),
    "int2-tokens": KiviCache(bits=2, keys_axis="token", values_axis="channel", base_layers=1),
    "int4-hadamard": KiviCache(keys_axis="token", hadamard=True, block=64),
}
FILES = {
    "llama": lambda: open_model(hf_model("llama")),
    "mistral-window": lambda: open_model(hf_model("mistral")),
    "qwen3-qknorm": lambda: open_model(hf_model("qwen3")),
}
IDS = np.random.default_rng(5).integers(0, VOCAB_SIZE, N_TOKENS).astype(np.int32)
ISAS = [name for name, _ in _native.supported_isas()]


def build(family: str = "llama", threads: int = 1) -> Model:
    file = FILES[family]()
    return Model(
        file.config,
        ModelTensors(file),
        context_len=512,
        max_tokens=512,
        max_logit_rows=512,
        n_threads=threads,
    )


def feed(model: Model, cache: CodedKVCache, ids: np.ndarray, chunk: int = 512) -> np.ndarray:
    """Run tokens through the model; returns the logits of all of them."""
    logits = []
    for part in np.split(ids, range(chunk, len(ids), chunk)):
        cache.reserve(len(part))
        rows = np.arange(len(part), dtype=np.int32)
        logits.append(model.forward(Step(part, [SequenceSlice(cache, 0, len(part))], rows)).copy())
    return np.concatenate(logits)


def codes_of(cache: CodedKVCache) -> list[bytes]:
    """The content of the code pages of full blocks."""
    n_full = cache.n_tokens // cache.store.page_tokens
    return [cache.store.codes.read(int(page)) for page in cache.page_table[:n_full]]


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = _native.isa()
    yield
    _native.select_isa(before)


@pytest.mark.parametrize("family", FILES)
@pytest.mark.parametrize("name", OPTIONS)
def test_chunks_change_neither_codes_nor_logits(family: str, name: str) -> None:
    model = build(family)
    store = OPTIONS[name].store(model.config, 64)
    whole = store.new()
    logits = feed(model, whole, IDS)
    assert np.isfinite(logits).all()
    for chunk in (1, 100):
        cache = store.new()
        assert np.array_equal(logits, feed(model, cache, IDS, chunk)), chunk
        assert codes_of(cache) == codes_of(whole)


@pytest.mark.parametrize("lag", [1, 2])
def test_blocks_encoded_later_change_no_bit_either(lag: int) -> None:
    model = build()
    codec = KiviCache(block=64).codec(model.config)
    store = CodedStore(model.config, codec, 64, "test", lag=lag)
    logits = feed(model, store.new(), IDS)
    for chunk in (1, 33, 100):
        assert np.array_equal(logits, feed(model, store.new(), IDS, chunk)), chunk
    less_exact = KiviCache(block=64).store(model.config, 64)
    assert not np.array_equal(logits, feed(model, less_exact.new(), IDS))


def test_a_lag_keeps_that_many_blocks_exact() -> None:
    """Nothing is read from codes before the block after the lag."""
    model = build()
    codec = KiviCache(block=64, bits=2).codec(model.config)
    exact = feed(model, PagePool(model.config, "f16", 64).new(), IDS)  # type: ignore[arg-type]
    for lag in (0, 1, 2):
        coded = feed(model, CodedStore(model.config, codec, 64, "test", lag=lag).new(), IDS)
        n = 64 * (lag + 1)
        assert np.array_equal(coded[:n], exact[:n])
        assert not np.array_equal(coded[n : n + 64], exact[n : n + 64])


@pytest.mark.parametrize("name", OPTIONS)
def test_threads_change_no_bit(name: str) -> None:
    options = OPTIONS[name]
    one, two = (
        feed(m, options.store(m.config, 16).new(), IDS) for m in (build(), build(threads=2))
    )
    assert np.array_equal(one, two)


@pytest.mark.skipif(len(ISAS) < 2, reason="this CPU runs one instruction set only")
@pytest.mark.parametrize("name", OPTIONS)
def test_every_instruction_set_makes_the_same_codes(name: str, restore_isa: None) -> None:
    found = {}
    for isa in ISAS:
        assert _native.select_isa(isa)
        model = build()
        cache = OPTIONS[name].store(model.config, 16).new()
        logits = feed(model, cache, IDS)
        found[isa] = logits.tobytes(), codes_of(cache)
    assert all(found[isa] == found[ISAS[0]] for isa in ISAS)


def test_neighbours_in_the_batch_change_no_bit() -> None:
    model = build(threads=2)
    store = KiviCache(block=64).store(model.config, 64)
    alone = feed(model, store.new(), IDS)
    caches = [store.new() for _ in range(3)]
    feed(model, caches[0], IDS[:127])
    feed(model, caches[1], IDS[:299])
    parts = [IDS[127:200], IDS[299:], IDS[:150]]
    slices, begin = [], 0
    for cache, part in zip(caches, parts, strict=True):
        cache.reserve(len(part))
        slices.append(SequenceSlice(cache, begin, begin + len(part)))
        begin += len(part)
    rows = np.array([s.end - 1 for s in slices], np.int32)
    logits = model.forward(Step(np.concatenate(parts), slices, rows))
    assert np.array_equal(logits, alone[[199, 299, 149]])


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130, 192])
@pytest.mark.parametrize("lag", [0, 1])
def test_forks_do_not_meet(n: int, lag: int) -> None:
    model = build()
    codec = KiviCache(block=64).codec(model.config)
    store = CodedStore(model.config, codec, 64, "test", lag=lag)
    alone = feed(model, store.new(), IDS)
    cache = store.new()
    feed(model, cache, IDS[:n], 40)
    twin = cache.fork()
    feed(model, twin, IDS[:70][::-1].copy(), 7)  # writes where both could
    assert np.array_equal(feed(model, cache, IDS[n:], 50), alone[n:])
    for c in (cache, twin):
        c.close()
    assert store.codes.n_in_use == store.exact.native.n_in_use == 0
    assert store.check_integrity()


def test_a_prefix_taken_over_changes_no_bit() -> None:
    model = build()
    store = KiviCache(block=64).store(model.config, 64)
    cache = store.new()
    logits = feed(model, cache, IDS[:200])
    assert cache.n_shareable == 192
    for n in (64, 192):
        other = store.new()
        other.adopt([int(p) for p in cache.page_table[: n // 64]], n)
        assert np.array_equal(feed(model, other, IDS[n:200], 30), logits[n:])
    in_use = store.codes.n_in_use
    other.replace_page(0, int(cache.page_table[0]))
    assert store.codes.n_in_use == in_use


def test_only_full_blocks_can_be_taken_over() -> None:
    store = KiviCache(block=64).store(build().config, 8)
    with pytest.raises(ValueError, match="1 code pages cannot begin a cache with 30 tokens"):
        store.new().adopt([0], 30)
    lagging = CodedStore(store.config, store.codec, 8, "test", lag=1)
    assert lagging.shared_pages is None
    with pytest.raises(ValueError, match="cannot begin with codes alone"):
        lagging.new().adopt([], 0)


def test_truncation_goes_back_to_a_block_or_into_the_exact_window() -> None:
    model = build()
    store = KiviCache(block=64).store(model.config, 64)
    cache = store.new()
    logits = feed(model, cache, IDS[:150])
    for n in (140, 128, 64, 0):
        cache.truncate(n)
        assert cache.n_tokens == n
        assert np.array_equal(feed(model, cache, IDS[n:150], 20), logits[n:])
    with pytest.raises(
        ValueError, match="150 tokens to 100: of the tokens from 64 on only codes are left"
    ):
        cache.truncate(100)
    assert cache.n_tokens == 150
    with pytest.raises(ValueError, match="cannot truncate 150 tokens to 151"):
        cache.truncate(151)


def test_without_a_window_steps_take_whole_blocks() -> None:
    model = build()
    store = KiviCache(block=64, exact_window=False).store(model.config, 64)
    cache = store.new()
    distorted = feed(model, cache, IDS[:192])
    assert np.array_equal(distorted, feed(model, store.new(), IDS[:192], 64))
    exact = feed(model, PagePool(model.config, "f16", 8).new(), IDS[:192])  # type: ignore[arg-type]
    assert not np.array_equal(distorted[:64], exact[:64])
    assert store.exact.native.resident_nbytes == 0
    with pytest.raises(ValueError, match="takes whole blocks of 64 tokens at a time"):
        feed(model, cache, IDS[:10])
    assert cache.n_tokens == 192


@pytest.mark.parametrize("name", OPTIONS)
def test_a_token_that_is_not_a_number_does_not_come_back_as_one(name: str) -> None:
    model = build()
    codec = OPTIONS[name].codec(model.config)
    n, dim = codec.block_tokens, codec.k_dim
    k, v = np.random.default_rng(1).standard_normal((2, n, dim)).astype(np.float32)
    k[5, 3], v[7, 2] = np.inf, np.nan
    table = np.ones((n, dim // 2), np.float32), np.zeros((n, dim // 2), np.float32)
    keys, values = codec.decode(0, 0, 0, codec.encode(0, 0, 0, k, v, *table, False), *table, False)
    assert not np.isfinite(keys[5, 3])
    assert not np.isfinite(values[7, 2])


def test_bytes_are_those_of_the_footprint() -> None:
    model = build()
    for options in OPTIONS.values():
        store = options.store(model.config, 16)
        footprint = options.footprint(model.config)
        cache = store.new()
        feed(model, cache, IDS[:240], 37)  # the last block is nearly full
        assert store.nbytes == footprint.nbytes(240)
        cache.close()
        store.trim()
        assert store.nbytes == 0


def test_room_is_counted_in_blocks() -> None:
    model = build()
    store = KiviCache(block=64).store(model.config, 3)
    cache = store.new()
    feed(model, cache, IDS[:100])
    assert (cache.pages_wanted(28), cache.pages_wanted(29), store.n_free) == (0, 1, 1)
    with pytest.raises(CapacityError, match="93 more tokens need 2 pages of 64 tokens and 1 of 3"):
        cache.reserve(93)
    assert store.n_free == 1


def test_an_exported_cache_goes_on_with_the_same_bits() -> None:
    model = build()
    store = KiviCache(block=64).store(model.config, 64)
    logits = feed(model, store.new(), IDS)
    for n in (64, 150):
        cache = store.new()
        feed(model, cache, IDS[:n])
        restored = store.new()
        restored.load(cache.export())
        assert np.array_equal(feed(model, restored, IDS[n:]), logits[n:])


def test_foreign_and_damaged_records_are_refused() -> None:
    model = build()
    store = KiviCache(block=64).store(model.config, 8)
    cache = store.new()
    feed(model, cache, IDS[:70])
    record = cache.export()
    for damaged, problem in (
        (record[:10], "has no header"),
        (record[:-1], "bytes of pages for 70 tokens"),
        (record[:-1] + bytes([record[-1] ^ 1]), "checksum does not match"),
        (b"capaxkv1" + record[8:], "belongs to another"),
    ):
        with pytest.raises(StoreError, match=problem):
            cache.load(damaged)
    other = KiviCache(block=64, bits=4, group=CONFIG_DIM, keys="pre").store(model.config, 8)
    with pytest.raises(StoreError, match="belongs to another"):
        other.new().load(record)
    assert cache.n_tokens == 70


CONFIG_DIM = FILES["llama"]().config.head_dim


def test_caches_of_other_kinds_in_the_same_step_are_refused() -> None:
    model = build()
    caches = [KiviCache().store(model.config, 8).new() for _ in range(2)]
    for cache in caches:
        cache.reserve(1)
    slices = [SequenceSlice(c, i, i + 1) for i, c in enumerate(caches)]
    with pytest.raises(ValueError, match="all caches of a step must be of its store"):
        model.forward(Step(IDS[:2], slices, np.arange(2, dtype=np.int32)))


def test_footprint_counts_the_window_of_a_lag() -> None:
    config = build().config
    codec = KiviCache(block=128).codec(config)
    plain, lagging, none = (coded_footprint(config, codec, lag=lag) for lag in (0, 2, -1))
    assert lagging.sequence == 3 * plain.sequence > 0 == none.sequence
