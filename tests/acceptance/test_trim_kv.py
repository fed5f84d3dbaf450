"""TRIM-KV (arXiv 2512.03324): what the bounded cache promises, exactly.

What training achieves is measured by benchmarks/trim_kv.py; here are the identities.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from capax.errors import FileFormatError
from capax.files.digest import weights_digest
from capax.kv.retention_gates import read_gates
from tests.kv.bounded_runs import (
    PlannedGates,
    RecordingGates,
    Runner,
    gates_file,
    heads,
    some_ids,
    tiny,
    trim_cache,
)

METHODS = ("stream", "h2o", "snapkv", "random", "trim")


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner()


@pytest.fixture(scope="module")
def gates(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gates_file(tmp_path_factory.mktemp("gates") / "g.safetensors", runner)


def spelled(method: str, gates: Path, **options: int) -> str:
    parts = [f"{name}={value}" for name, value in options.items()]
    if method == "trim":
        parts.append(f"gates={gates}")
    return f"{method}:{','.join(parts)}"


# --- 1. identity ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_fits_is_the_full_cache_bit_for_bit(runner: Runner, gates: Path, method: str) -> None:
    ids = some_ids(200)
    full = runner.feed(runner.cache("f16"), ids)
    bounded = runner.feed(runner.cache(spelled(method, gates, memory=200, buffer=16)), ids)
    assert np.array_equal(full, bounded)


def test_what_does_not_fit_is_not(runner: Runner, gates: Path) -> None:
    ids = some_ids(200)
    full = runner.feed(runner.cache("f16"), ids)
    bounded = runner.feed(runner.cache(spelled("trim", gates, memory=64, buffer=16)), ids)
    assert np.array_equal(full[:80], bounded[:80])  # nothing is dropped before 80 are there
    assert not np.array_equal(full[81], bounded[81])


# --- 1b. closed forms for M < T ---------------------------------------------------------


def test_equal_gates_keep_exactly_the_last_tokens(runner: Runner) -> None:
    n_heads = runner.config.n_kv_heads
    cache = trim_cache(runner, PlannedGates(lambda layer, p: [-0.01] * n_heads), 40, 1)
    runner.feed(cache, some_ids(150))
    for kept in heads(cache, runner.config.n_layers):
        assert kept.tolist() == list(range(110, 150))


@pytest.mark.parametrize("buffer", [1, 7, 16])
def test_gates_that_never_forget_the_first_four_are_streaming_llm(
    runner: Runner, buffer: int
) -> None:
    n_heads = runner.config.n_kv_heads
    ids = some_ids(150)
    planned = PlannedGates(lambda layer, p: [0.0 if p < 4 else -0.003] * n_heads)
    trim = runner.feed(trim_cache(runner, planned, 40, buffer), ids)
    stream = runner.feed(runner.cache(f"stream:memory=40,sinks=4,buffer={buffer}"), ids)
    assert np.array_equal(trim, stream)


# --- 2. bound ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_no_head_ever_holds_more_than_memory_and_buffer(
    runner: Runner, gates: Path, method: str
) -> None:
    cache = runner.bounded(spelled(method, gates, memory=40, buffer=16))
    nbytes = set()
    for i, token in enumerate(some_ids(200)):
        runner.feed(cache, [token])
        sizes = {len(kept) for kept in heads(cache, runner.config.n_layers)}
        assert sizes == {cache.n_kept()}
        assert cache.n_kept() <= min(i + 1, 55)  # 56 are there during a step, never after it
        nbytes.add(cache.nbytes)
    assert len(nbytes) == 1


def test_the_bytes_are_the_formula_and_what_is_allocated(runner: Runner, gates: Path) -> None:
    c = runner.config
    cache = runner.bounded(spelled("trim", gates, memory=96, buffer=32))
    runner.feed(cache, some_ids(300))
    n_heads = c.n_layers * c.n_kv_heads
    assert cache.nbytes == n_heads * (96 + 32) * (2 * c.head_dim * 2 + 8)
    held = sum(array.nbytes for array in cache._memory.parts())
    assert cache.nbytes == held


# --- 3. decisions -----------------------------------------------------------------------


def replay(log_beta: np.ndarray, memory: int, buffer: int) -> list[int]:
    """Evict by brute force, one at a time: of one head's log beta [T], who is left?"""
    alive: list[int] = []
    for t, _ in enumerate(log_beta):
        alive.append(t)
        if len(alive) < memory + buffer:
            continue
        for _ in range(buffer):
            worst = min(alive, key=lambda p: (float(log_beta[p]) * (t - p + 1), p))
            alive.remove(worst)
    return alive


@pytest.mark.parametrize(("memory", "buffer", "n"), [(50, 1, 1000), (64, 16, 600)])
def test_survivors_are_those_of_a_brute_force_replay(
    runner: Runner, gates: Path, memory: int, buffer: int, n: int
) -> None:
    recorded = RecordingGates(read_gates(gates, runner.file))
    cache = trim_cache(runner, recorded, memory, buffer)
    runner.feed(cache, some_ids(n))
    survivors = set()
    for layer in range(runner.config.n_layers):
        kept = cache.kept(layer)
        for head, log_beta in enumerate(recorded.said(layer)):
            assert kept[head].tolist() == replay(log_beta, memory, buffer)
            survivors.add(tuple(kept[head]))
    assert len(survivors) > 1  # heads keep different tokens


def test_of_equal_scores_the_older_goes(runner: Runner) -> None:
    n_heads = runner.config.n_kv_heads
    cache = trim_cache(runner, PlannedGates(lambda layer, p: [0.0] * n_heads), 30, 5)
    runner.feed(cache, some_ids(100))
    for kept in heads(cache, runner.config.n_layers):
        assert kept.tolist() == list(range(70, 100))


def test_survivors_depend_on_the_gates(runner: Runner, tmp_path: Path) -> None:
    ids = some_ids(300)
    kept = []
    for seed in (1, 2):
        path = gates_file(tmp_path / f"{seed}.safetensors", runner, seed)
        cache = runner.bounded(f"trim:memory=40,buffer=8,gates={path}")
        runner.feed(cache, ids)
        kept.append([tuple(k) for k in heads(cache, runner.config.n_layers)])
    assert kept[0] != kept[1]
    assert any(k != tuple(range(300 - len(k), 300)) for k in kept[0])  # not a recent window


# --- chunks -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_neither_logits_nor_survivors(
    runner: Runner, gates: Path, method: str
) -> None:
    ids = some_ids(500)
    seen = []
    for chunk in (500, 7, 1):
        cache = runner.bounded(spelled(method, gates, memory=40, buffer=16))
        logits = runner.feed(cache, ids, chunk)
        seen.append((logits, list(heads(cache, runner.config.n_layers))))
    for logits, kept in seen[1:]:
        assert np.array_equal(seen[0][0], logits)
        assert np.array_equal(seen[0][1], kept)


def test_a_survivor_keeps_its_bytes(runner: Runner, gates: Path) -> None:
    """Positions are not counted anew: the rotated key of a survivor never changes."""
    ids = some_ids(120)
    cache = runner.bounded(spelled("trim", gates, memory=40, buffer=8))
    full = runner.bounded(spelled("trim", gates, memory=200, buffer=8))
    runner.feed(cache, ids)
    runner.feed(full, ids)
    own, all_of_them = keys(runner, cache, layer=0), keys(runner, full, layer=0)
    for head, kept in enumerate(cache.kept(0)):
        assert np.array_equal(own[head][:, : len(kept)], all_of_them[head][:, kept])


def keys(runner: Runner, cache: object, layer: int) -> np.ndarray:
    """The bits of all K of a layer: uint16 [n_kv_heads, head_dim, n]."""
    c = runner.config
    pool = cache._memory.pool.view(np.uint16)  # type: ignore[attr-defined]
    per_layer = pool.shape[1] // c.n_layers
    pages = pool[:, layer * per_layer : (layer + 1) * per_layer]
    heads_ = pages.reshape(len(pages), c.n_kv_heads, -1)[:, :, : c.head_dim * 64]
    blocks = heads_.reshape(len(pages), c.n_kv_heads, c.head_dim, 64)
    return np.concatenate(list(blocks), axis=-1)


# --- 13. gates do not see the future ----------------------------------------------------


def test_a_prefix_alone_gets_the_same_gates(runner: Runner, gates: Path) -> None:
    ids = some_ids(200)
    said = []
    for n in (200, 90):
        recorded = RecordingGates(read_gates(gates, runner.file))
        runner.feed(trim_cache(runner, recorded, 40, 16), ids[:n])
        said.append(recorded)
    for layer in range(runner.config.n_layers):
        whole, prefix = said[0].said(layer), said[1].said(layer)
        assert np.array_equal(whole[:, :90], prefix)
        assert whole.min() < -1e-3  # they say something


# --- 9. whose gates ---------------------------------------------------------------------


def test_gates_of_another_model_are_refused(runner: Runner, gates: Path) -> None:
    other = Runner(tiny("Q4_1"))
    assert weights_digest(other.file) != weights_digest(runner.file)
    with pytest.raises(FileFormatError, match="were trained for a model with digest"):
        other.cache(spelled("trim", gates, memory=40))


# --- truncation -------------------------------------------------------------------------


def test_going_back_behind_what_was_dropped_is_refused(runner: Runner, gates: Path) -> None:
    ids = some_ids(100)
    cache = runner.bounded(spelled("trim", gates, memory=40, buffer=16))
    runner.feed(cache, ids[:95])  # dropped at 56, 72 and 88 tokens
    with pytest.raises(ValueError, match="dropped at 88 tokens and are gone"):
        cache.truncate(87)
    cache.truncate(90)
    again = runner.feed(cache, ids[90:])
    fresh = runner.feed(runner.cache(spelled("trim", gates, memory=40, buffer=16)), ids)
    assert np.array_equal(again, fresh[90:])
