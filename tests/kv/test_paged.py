"""The paged cache: sharing, copy on write, room, and records that are not trusted."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from capax.errors import CapacityError, ConfigError, StoreError
from capax.files.model_file import open_model
from capax.kv import KV_TYPES, PAGE_TOKENS, AttentionInput, PagedKVCache, PagePool, page_nbytes
from tests.models import hf_model

CONFIG = open_model(hf_model("llama")).config
D_KV = CONFIG.n_kv_heads * CONFIG.head_dim

NOTHING = np.empty(0, np.float32)


def fill(cache: PagedKVCache, n: int, seed: int = 0) -> None:
    """Append n random tokens to every layer."""
    rng = np.random.default_rng(seed)
    positions = np.arange(cache.n_tokens, cache.n_tokens + n, dtype=np.int32)
    cache.reserve(n)
    for layer in range(CONFIG.n_layers):
        k, v = rng.standard_normal((2, n, D_KV)).astype(np.float32)
        inputs = AttentionInput(k, v, lambda: NOTHING, lambda: NOTHING, lambda keys, _: keys)
        cache.append(layer, inputs, positions)
    cache.advance(n)


def look(cache: PagedKVCache) -> np.ndarray:
    """What a fixed query at the last position gets from each layer."""
    q = np.random.default_rng(99).standard_normal((1, CONFIG.n_heads, CONFIG.head_dim))
    at = np.array([cache.n_tokens - 1], np.int32)
    return np.stack(
        [cache.attend(layer, q.astype(np.float32), at) for layer in range(CONFIG.n_layers)]
    )


@pytest.mark.parametrize("kv", KV_TYPES)
def test_page_bytes_follow_the_formula(kv: str) -> None:
    nbytes = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}[kv]
    scales = 8 if kv == "int8" else 0  # float32 for K and for V, for each token and head
    per_token = CONFIG.n_layers * CONFIG.n_kv_heads * (2 * CONFIG.head_dim * nbytes + scales)
    assert page_nbytes(CONFIG, kv) == PAGE_TOKENS * per_token  # type: ignore[arg-type]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int3' is unknown: use one of f32, f16, bf16, int8"):
        PagePool(CONFIG, "int3", 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
def test_a_fork_is_shared_until_one_side_writes(n: int) -> None:
    pool = PagePool(CONFIG, "f32", 16)
    cache = PagedKVCache(pool)
    fill(cache, n)
    before = look(cache)
    pages = pool.native.n_in_use
    twin = cache.fork()
    assert pool.native.n_in_use == pages
    fill(twin, 3, seed=1)
    assert np.array_equal(look(cache), before)
    fill(cache, 3, seed=1)
    assert np.array_equal(look(cache), look(twin))
    twin.close()
    cache.close()
    assert pool.native.n_in_use == 0


@pytest.mark.parametrize("n", [1, 10, 64])
def test_pages_reserved_for_tokens_to_come_are_not_shared(n: int) -> None:
    pool = PagePool(CONFIG, "f32", 16)
    cache = PagedKVCache(pool)
    fill(cache, n)
    cache.reserve(100)
    twin = cache.fork()
    fill(twin, 70, seed=1)
    before = look(twin)
    fill(cache, 70, seed=2)
    assert np.array_equal(look(twin), before)
    cache.close()
    twin.close()
    assert pool.native.n_in_use == 0


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 100])
def test_truncate_then_append_equals_fresh(keep: int) -> None:
    pool = PagePool(CONFIG, "f16", 16)
    cache, fresh = PagedKVCache(pool), PagedKVCache(pool)
    fill(cache, 100)
    cache.truncate(keep)
    fill(fresh, 100)
    fresh.truncate(keep)
    fill(cache, 70, seed=2)
    fill(fresh, 30, seed=3)
    fresh.truncate(keep)
    fill(fresh, 70, seed=2)
    assert np.array_equal(look(cache), look(fresh))


def test_a_full_pool_is_a_capacity_error_and_changes_nothing() -> None:
    pool = PagePool(CONFIG, "f16", 2)
    cache = PagedKVCache(pool)
    fill(cache, 100)
    before = look(cache)
    with pytest.raises(CapacityError, match="2 pages of 64 tokens and 0 of 2 are free"):
        cache.reserve(100)
    assert cache.n_tokens == 100
    assert np.array_equal(look(cache), before)


def test_the_copy_of_a_shared_page_counts_as_needed() -> None:
    pool = PagePool(CONFIG, "f16", 2)
    cache = PagedKVCache(pool)
    fill(cache, 100)
    twin = cache.fork()
    with pytest.raises(CapacityError):
        twin.reserve(1)
    cache.close()
    twin.reserve(1)


def test_a_record_loads_into_an_equal_cache() -> None:
    pool = PagePool(CONFIG, "int8", 8)
    cache, other = PagedKVCache(pool), PagedKVCache(pool)
    fill(cache, 90)
    fill(other, 10, seed=5)
    cache.reserve(100)  # not part of the record
    other.load(cache.export())
    assert other.n_tokens == 90
    assert np.array_equal(look(cache), look(other))
    other.close()
    cache.close()
    assert pool.native.n_in_use == 0


def damaged(record: bytes) -> dict[str, bytes]:
    n_tokens_at = 8 + 5 * 8
    return {
        "empty": b"",
        "header only in part": record[:20],
        "a byte missing": record[:-1],
        "a byte too many": record + b"\0",
        "magic": b"x" + record[1:],
        "layout": record[:16] + struct.pack("<q", 7) + record[24:],
        "negative length": record[:n_tokens_at] + struct.pack("<q", -1) + record[n_tokens_at + 8 :],
        "huge length": record[:n_tokens_at] + struct.pack("<q", 2**62) + record[n_tokens_at + 8 :],
        "flipped bit": record[:-5] + bytes([record[-5] ^ 4]) + record[-4:],
    }


@pytest.mark.parametrize("kind", damaged(bytes(100)))
def test_a_damaged_record_is_refused_and_changes_nothing(kind: str) -> None:
    pool = PagePool(CONFIG, "f16", 8)
    cache, source = PagedKVCache(pool), PagedKVCache(pool)
    fill(source, 70, seed=4)
    fill(cache, 5)
    before, in_use = look(cache), pool.native.n_in_use
    with pytest.raises(StoreError):
        cache.load(damaged(source.export())[kind])
    assert np.array_equal(look(cache), before)
    assert pool.native.n_in_use == in_use


def test_a_record_of_another_type_is_refused() -> None:
    source = PagedKVCache(PagePool(CONFIG, "f16", 4))
    fill(source, 10)
    with pytest.raises(StoreError, match="another model, layout or version"):
        PagedKVCache(PagePool(CONFIG, "bf16", 4)).load(source.export())
