"""Pages by content: what is found, what is kept, and what goes first."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.engine.prefix_cache import PrefixCache, page_key, root_key
from capax.files.config import ModelConfig
from capax.files.model_file import open_model
from capax.kv import PAGE_TOKENS, PagedKVCache, PagePool
from tests.models import gguf_model

P = PAGE_TOKENS


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return open_model(gguf_model("llama")).config


@pytest.fixture
def pool(config: ModelConfig) -> PagePool:
    return PagePool(config, "f16", 32)


def filled(pool: PagePool, n_tokens: int) -> PagedKVCache:
    cache = PagedKVCache(pool)
    cache.reserve(n_tokens)
    cache.advance(n_tokens)
    return cache


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, n).tolist()


def taken(prefixes: PrefixCache, pool: PagePool, ids: list[int], namespace: str = "") -> int:
    """Tokens of a prompt that the cache knows."""
    cache = PagedKVCache(pool)
    prefixes.take(namespace, ids, cache)
    n = cache.n_tokens
    cache.close()
    return n


def test_a_prompt_finds_all_but_its_last_token(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(3 * P)
    prefixes.keep("", ids, filled(pool, 3 * P))
    assert taken(prefixes, pool, ids) == 3 * P - 1
    assert taken(prefixes, pool, [*ids, 1]) == 3 * P
    assert taken(prefixes, pool, ids[: 2 * P]) == 2 * P - 1
    assert taken(prefixes, pool, ids[:1]) == 0
    assert taken(prefixes, pool, [*ids[: P + 5], *tokens(100, 1)]) >= P + 5
    assert taken(prefixes, pool, tokens(100, 1)) == 0


def test_a_partly_filled_page_is_kept_when_its_sequence_is_over(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(2 * P)
    cache = filled(pool, P + 9)
    prefixes.keep("", ids, cache)
    assert taken(prefixes, pool, ids) == P
    prefixes.keep("", ids, cache, partial=True)
    assert taken(prefixes, pool, ids) == P + 9
    assert prefixes.n_pages == 2


def test_of_pages_that_agree_in_part_the_best_is_taken(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(40)
    for n in (3, 30, 12):
        prefixes.keep("", ids[:n] + [299] * 10, filled(pool, n + 10), partial=True)
    assert taken(prefixes, pool, ids) == 30


def test_namespaces_do_not_meet(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(2 * P)
    prefixes.keep("a", ids, filled(pool, 2 * P))
    assert [taken(prefixes, pool, ids, n) for n in ("", "b", "a")] == [0, 0, 2 * P - 1]


def test_equal_pages_are_kept_once_and_shared(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(2 * P)
    first, second = filled(pool, 2 * P), filled(pool, 2 * P)
    prefixes.keep("", ids, first)
    prefixes.keep("", ids, second)
    assert second.page_table.tolist() == first.page_table.tolist()
    assert pool.native.n_in_use == 2
    assert pool.native.references(int(first.page_table[0])) == 3


def test_what_was_used_longest_ago_goes_first_and_never_before_what_continues_it(
    pool: PagePool,
) -> None:
    prefixes = PrefixCache(pool)
    chains = [tokens(3 * P, 1), tokens(3 * P, 2)]
    pages = []
    for ids in chains:
        cache = filled(pool, 3 * P)
        prefixes.keep("", ids, cache)
        pages.append(cache.page_table.tolist())
        cache.close()
    assert taken(prefixes, pool, [*chains[0], 1]) == 3 * P  # used again: now the newer one
    for expected in [*reversed(pages[1]), *reversed(pages[0])]:
        before = set(prefixes.pages())
        assert prefixes.evict(1) == 1
        assert before - set(prefixes.pages()) == {expected}
    assert prefixes.evict(10) == 0
    assert prefixes.n_pages == pool.native.n_in_use == 0


def test_pages_in_use_are_not_dropped(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(2 * P)
    cache = filled(pool, 2 * P)
    prefixes.keep("", ids, cache)
    assert prefixes.n_evictable == 0
    assert prefixes.evict(5) == 0
    cache.close()
    assert prefixes.n_evictable == 2
    prefixes.clear()
    assert pool.native.n_in_use == 0


def test_a_shared_page_is_copied_before_it_is_written(pool: PagePool) -> None:
    prefixes = PrefixCache(pool)
    ids = tokens(P + 20)
    cache = filled(pool, P + 20)
    prefixes.keep("", ids, cache, partial=True)
    cache.close()
    reader = PagedKVCache(pool)
    prefixes.take("", [*ids[: P + 10], 1, 2, 3], reader)
    kept = reader.page_table.tolist()
    assert reader.pages_wanted(3) == 1
    reader.reserve(3)
    assert reader.page_table[0] == kept[0]
    assert reader.page_table[1] != kept[1]


def test_a_hit_compares_the_tokens(pool: PagePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that collides gives nothing: the digest alone is not believed."""
    monkeypatch.setattr(
        "capax.engine.prefix_cache.page_key", lambda parent, ids: struct.pack("<q", len(parent))
    )
    prefixes = PrefixCache(pool)
    prefixes.keep("", [5] * P, filled(pool, P))
    assert taken(prefixes, pool, [6] * (P + 1)) == 0


@given(st.text(max_size=8), st.text(max_size=8))
def test_roots_of_different_namespaces_differ(a: str, b: str) -> None:
    assert (root_key(a) == root_key(b)) == (a == b)


def test_keys_are_sha256_of_tagged_parts_with_their_lengths() -> None:
    def digest(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(struct.pack("<Q", len(p)) + p for p in parts)).digest()

    root = digest(b"capax prefix 1 root", b"tenant")
    assert root_key("tenant") == root
    ids = list(range(64))
    expected = digest(b"capax prefix 1 page", root, np.array(ids, "<i4").tobytes())
    assert page_key(root, ids) == expected
    # No page looks like a root, nor like a page of other tokens.
    assert page_key(root, ids[:32]) != page_key(root, ids)
    assert root_key("") != page_key(root, [])
