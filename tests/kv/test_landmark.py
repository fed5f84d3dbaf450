"""A landmark cache goes back, is copied and is stored, and says the same afterwards."""

import numpy as np
import pytest

from capax.errors import CapacityError, StoreError
from capax.kv.landmark import best_blocks
from tests.kv.landmark_models import BLOCK, LANDMARK_ID, WINDOW, Reader, some_ids

SPECS = ["landmark:k=2,chunk=16", "landmark:k=2,chunk=16,offload=mmap"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n_kept", [0, 1, 14, 100, 103, 119, 120])
def test_truncate_then_append_equals_fresh(spec, n_kept):
    reader, ids, others = Reader(spec), some_ids(120), some_ids(40, seed=1)
    cache = reader.store.new()
    reader.feed(cache, ids)
    cache.truncate(n_kept)
    again = reader.feed(cache, others)
    cache.close()
    fresh = reader.read(ids[:n_kept] + others)
    assert again.tobytes() == fresh[n_kept:].tobytes()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("n", [3, 120, 133])
def test_copies_go_their_own_ways(spec, n):
    reader, ids, others = Reader(spec), some_ids(n), some_ids(40, seed=2)
    cache, loaded = reader.store.new(), reader.store.new()
    reader.feed(cache, ids)
    fork = cache.fork()
    loaded.load(cache.export())
    expected = reader.feed(fork, others)
    assert reader.feed(loaded, others).tobytes() == expected.tobytes()
    reader.feed(cache, some_ids(30, seed=3))  # changes nothing of the others
    assert reader.feed(fork, [5]).tobytes() == reader.feed(loaded, [5]).tobytes()
    for each in (cache, fork, loaded):
        each.close()
    assert reader.store.nbytes == 0
    assert reader.store.n_free == reader.store.capacity


def test_what_was_stored_elsewhere_or_damaged_is_refused():
    reader, other = Reader("landmark:k=2,chunk=16"), Reader("landmark:k=2,chunk=24")
    cache = reader.store.new()
    reader.feed(cache, some_ids(50))
    content = cache.export()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    for bad, says in [(b"", "not a stored"), (damaged, "damaged"), (content[:-4], "damaged")]:
        with pytest.raises(StoreError, match=says):
            cache.load(bad)
    with pytest.raises(StoreError, match="another model or chunk"):
        other.store.new().load(content)
    assert cache.n_tokens == 50


def test_landmarks_stand_behind_whole_blocks_and_no_row_is_lost():
    cache = Reader("landmark:k=2").store.new()
    tokens = np.arange(100, 100 + 3 * BLOCK, dtype=np.int32)
    read = cache.insert(tokens)
    assert (read.tokens[BLOCK - 1 :: BLOCK] == LANDMARK_ID).all()
    assert (read.tokens[read.rows] == tokens).all()
    assert len(read.tokens) == len(tokens) + len(tokens) // (BLOCK - 1)
    assert read.positions.max() < WINDOW


def test_only_so_many_blocks_are_remembered():
    reader = Reader("landmark:k=2,chunk=16,max_blocks=4")
    unlimited = Reader("landmark:k=2,chunk=16")
    ids = some_ids(400)
    logits, all_kept = reader.read(ids), unlimited.read(ids)
    assert logits[:40].tobytes() == all_kept[:40].tobytes()
    assert np.abs(logits[-40:] - all_kept[-40:]).max() > 1e-3
    assert reader.store.footprint.pages_for(10_000) == 1
    cache = reader.store.new()
    reader.feed(cache, ids)
    with pytest.raises(ValueError, match="forgotten"):
        cache.truncate(200)


def test_a_full_store_refuses_and_changes_nothing():
    reader = Reader("landmark:k=2")
    cache = reader.store.new()
    with pytest.raises(CapacityError, match="full"):
        cache.reserve(1_000_000)
    assert cache.nbytes == 0
    assert reader.store.n_free == reader.store.capacity


def test_who_chooses_together_gets_the_same_blocks():
    scores = np.zeros((2, 2, 4), np.float32)
    scores[0, 0, 1], scores[0, 1, 2], scores[1, 0, 3], scores[1, 1, 0] = 9, 5, 7, 8
    assert best_blocks(scores, 1, "head_token")[..., 0].tolist() == [[1, 2], [3, 0]]
    assert best_blocks(scores, 1, "token")[..., 0].tolist() == [[1, 1], [0, 0]]
    assert best_blocks(scores, 1, "head")[..., 0].tolist() == [[1, 0], [1, 0]]
