"""Paged attention: against float64, and one set of bits however the work is cut."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capax import _native

# max |out - float64| / max |v|, where the reference reads the cache as it was rounded.
# Measured when written (2026-11-22): at most 1.0e-6 with every element type.
TOLERANCE = 2e-5
# Queries and weights of an int8 cache are rounded to 16 bits; 5.6e-5 measured when written.
INT8_TOLERANCE = 1.5e-4
TYPES = ["f32", "f16", "bf16", "int8"]


class Problem(NamedTuple):
    q: np.ndarray  # [n_tokens, n_heads, k_dim]
    k: np.ndarray  # [n_tokens, n_kv_heads, k_dim]
    v: np.ndarray  # [n_tokens, n_kv_heads, v_dim]

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)


def make_problem(
    n_tokens: int, n_kv_heads: int, n_group: int, k_dim: int, v_dim: int, seed: int = 0
) -> Problem:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Problem(
        2 * normal(n_tokens, n_kv_heads * n_group, k_dim),
        normal(n_tokens, n_kv_heads, k_dim),
        normal(n_tokens, n_kv_heads, v_dim),
    )


class Cache:
    """One layer of one sequence in a pool whose pages are scattered and hold a second layer."""

    def __init__(self, problem: Problem, kind: str, n_pages: int | None = None) -> None:
        n_tokens, n_kv_heads, k_dim = problem.k.shape
        self.layout = _native.KVLayout(kind, n_kv_heads, k_dim, problem.v.shape[2])
        n_pages = n_pages or -(-n_tokens // _native.PAGE_TOKENS)
        self.offset = self.layout.layer_page_nbytes
        self.pool = np.zeros((2 * n_pages + 3, 2 * self.offset), np.uint8)
        order = np.random.default_rng(9).permutation(len(self.pool))[:n_pages]
        self.page_table = order.astype(np.int32)

    def append(self, k: np.ndarray, v: np.ndarray, position0: int) -> None:
        _native.kv_append(self.layout, self.pool, self.offset, self.page_table, k, v, position0)

    def attend(self, q: np.ndarray, position0: int, scale: float, **options: int) -> np.ndarray:
        return _native.kv_attend(
            self.layout, self.pool, self.offset, self.page_table, q, position0, scale, **options
        )


def filled(problem: Problem, kind: str) -> Cache:
    cache = Cache(problem, kind)
    cache.append(problem.k, problem.v, 0)
    return cache


def in_chunks(problem: Problem, kind: str, chunk: int, **options: int) -> np.ndarray:
    """Append and attend chunk by chunk, as prefill and (chunk 1, by span) decode do."""
    cache = Cache(problem, kind)
    outs = []
    for start in range(0, len(problem.q), chunk):
        end = start + chunk
        cache.append(problem.k[start:end], problem.v[start:end], start)
        outs.append(cache.attend(problem.q[start:end], start, problem.scale, **options))
    return np.concatenate(outs)


def rounded(x: np.ndarray, kind: str) -> np.ndarray:
    """What a cache of this type gives back for x."""
    if kind == "f16":
        return x.astype(np.float16).astype(np.float64)
    if kind == "bf16":
        bits = x.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    if kind == "int8":
        top = np.abs(x).max(axis=-1, keepdims=True)
        return np.rint(x * (np.float32(127) / top)) * (top / np.float32(127)).astype(np.float64)
    return x.astype(np.float64)


def reference(problem: Problem, kind: str, window: int = 0, causal: bool = True) -> np.ndarray:
    n_tokens, n_heads, _ = problem.q.shape
    n_group = n_heads // problem.k.shape[1]
    k = np.repeat(rounded(problem.k, kind), n_group, axis=1)
    v = np.repeat(rounded(problem.v, kind), n_group, axis=1)
    scores = np.einsum("thd,khd->htk", problem.q.astype(np.float64), k) * problem.scale
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)[None, :]
    seen = distance >= 0 if causal else np.ones_like(distance, bool)
    if window:
        seen &= np.abs(distance) < window
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("htk,khd->thd", p / p.sum(axis=-1, keepdims=True), v)


def error(got: np.ndarray, problem: Problem, kind: str, **options: int | bool) -> float:
    want = reference(problem, kind, **options)
    return float(np.abs(got - want).max() / np.abs(problem.v).max())


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("window", [0, 1, 100])
def test_attention_matches_float64(isa: str, kind: str, window: int) -> None:
    problem = make_problem(150, 2, 3, 64, 64)
    got = filled(problem, kind).attend(problem.q, 0, problem.scale, window=window)
    tolerance = INT8_TOLERANCE if kind == "int8" else TOLERANCE
    assert error(got, problem, kind, window=window) <= tolerance


@pytest.mark.parametrize("window", [0, 700])
def test_attention_over_several_spans_matches_float64(window: int) -> None:
    problem = make_problem(1300, 1, 3, 32, 32)
    got = filled(problem, "f32").attend(problem.q, 0, problem.scale, window=window)
    assert error(got, problem, "f32", window=window) <= TOLERANCE


@pytest.mark.parametrize("n_group", range(1, 9))
def test_every_group_size_matches_float64(n_group: int) -> None:
    problem = make_problem(70, 2, n_group, 16, 16)
    got = filled(problem, "f16").attend(problem.q, 0, problem.scale)
    assert error(got, problem, "f16") <= TOLERANCE


@pytest.mark.parametrize(
    ("k_dim", "v_dim"),
    [(16, 16), (80, 80), (96, 96), (128, 128), (256, 256), (17, 1), (24, 40), (192, 128)],
)
@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
def test_every_head_dimension_matches_float64(kind: str, k_dim: int, v_dim: int) -> None:
    problem = make_problem(90, 2, 2, k_dim, v_dim)
    got = filled(problem, kind).attend(problem.q, 0, problem.scale)
    assert error(got, problem, kind) <= (INT8_TOLERANCE if kind == "int8" else TOLERANCE)


@pytest.mark.parametrize("window", [0, 50])
def test_bidirectional_attention_matches_float64(isa: str, window: int) -> None:
    problem = make_problem(130, 2, 2, 32, 32)
    got = filled(problem, "f32").attend(problem.q, 0, problem.scale, window=window, n_keys=130)
    assert error(got, problem, "f32", window=window, causal=False) <= TOLERANCE


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("window", [0, 90, 513])
def test_decode_prefill_and_every_chunk_give_the_same_bits(kind: str, window: int) -> None:
    problem = make_problem(1100, 1, 3, 16, 24)
    whole = in_chunks(problem, kind, 1100, window=window).tobytes()
    assert in_chunks(problem, kind, 1, window=window, by_span=True).tobytes() == whole
    assert in_chunks(problem, kind, 1, window=window).tobytes() == whole
    for chunk in (7, 64, 509):
        assert in_chunks(problem, kind, chunk, window=window).tobytes() == whole
    for tile_tokens in (1, 5, 17, 48):
        got = in_chunks(problem, kind, 1100, window=window, tile_tokens=tile_tokens)
        assert got.tobytes() == whole


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_cut_of_any_shape_gives_the_same_bits(data: st.DataObject) -> None:
    n_group, n_tokens = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 200))
    k_dim, v_dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    window, kind = data.draw(st.sampled_from([0, 1, 65])), data.draw(st.sampled_from(TYPES))
    problem = make_problem(n_tokens, 2, n_group, k_dim, v_dim, seed=data.draw(st.integers(0, 99)))
    whole = in_chunks(problem, kind, n_tokens, window=window)
    chunk = data.draw(st.integers(1, n_tokens))
    assert in_chunks(problem, kind, chunk, window=window).tobytes() == whole.tobytes()
    assert in_chunks(problem, kind, chunk, window=window, by_span=True).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_every_isa_gives_the_same_bits(kind: str, on_every_isa) -> None:
    for n_tokens, n_group, k_dim, v_dim in [(600, 3, 16, 16), (70, 7, 80, 40), (65, 8, 33, 17)]:
        problem = make_problem(n_tokens, 1, n_group, k_dim, v_dim)
        results = on_every_isa(lambda p=problem: in_chunks(p, kind, 256, window=300).tobytes())
        assert {name for name, bits in results.items() if bits != results["scalar"]} == set()


def test_span_borders_that_move_change_the_bits() -> None:
    """The negative control: the same keys cut at other places are not the same sum.

    The keys 0..599 are stored at positions 0.. and at positions 100..; the last query sees the same
    600 keys through a window. Only the borders between pages and spans lie elsewhere.
    """
    problem = make_problem(600, 1, 3, 32, 32)
    q = problem.q[-1:]
    straight = filled(problem, "f32").attend(q, 599, problem.scale, window=600)
    moved = Cache(problem, "f32", n_pages=11)
    moved.append(problem.k, problem.v, 100)
    shifted = moved.attend(q, 699, problem.scale, window=600)
    assert np.abs(straight - shifted).max() <= 1e-5
    assert straight.tobytes() != shifted.tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_stale_slots_behind_the_last_token_do_not_matter(kind: str) -> None:
    problem = make_problem(130, 2, 3, 32, 32)
    fresh, stale = Cache(problem, kind, n_pages=10), Cache(problem, kind, n_pages=10)
    garbage = make_problem(640, 2, 3, 32, 32, seed=5)
    stale.append(1e4 * garbage.k, 1e4 * garbage.v, 0)
    for cache in (fresh, stale):
        cache.append(problem.k, problem.v, 0)
    for options in ({}, {"by_span": True}, {"window": 20}):
        want = fresh.attend(problem.q, 0, problem.scale, **options)
        assert stale.attend(problem.q, 0, problem.scale, **options).tobytes() == want.tobytes()


def test_not_even_a_nan_behind_the_last_token_matters() -> None:
    problem = make_problem(70, 1, 3, 32, 32)
    cache = filled(problem, "f32")
    want = cache.attend(problem.q[-1:], 69, problem.scale)
    poison = np.full((1, 1, 32), np.nan, np.float32)
    cache.append(poison, poison, 70)
    assert cache.attend(problem.q[-1:], 69, problem.scale).tobytes() == want.tobytes()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_value_is_never_hidden(isa: str, kind: str, bad: float) -> None:
    problem = make_problem(40, 1, 2, 16, 16)
    for part in (problem.k, problem.v):
        before = part[7, 0, 3]
        part[7, 0, 3] = bad
        out = filled(problem, kind).attend(problem.q, 0, problem.scale)
        part[7, 0, 3] = before
        # An infinite key may weigh exactly nothing; what the cache holds else must show.
        if part is problem.k:
            assert np.isfinite(out[:7]).all()
        if part is problem.v or np.isnan(bad):
            assert not np.isfinite(out[7:]).all(axis=-1).any()


def test_a_fork_reads_the_pages_it_shares() -> None:
    problem = make_problem(200, 2, 2, 16, 16)
    cache = filled(problem, "f16")
    copy = cache.pool[cache.page_table[-1]].copy()
    table = np.append(cache.page_table[:-1], len(cache.pool)).astype(np.int32)
    pool = np.vstack([cache.pool, copy])
    fork = _native.kv_attend(cache.layout, pool, cache.offset, table, problem.q, 0, problem.scale)
    assert fork.tobytes() == cache.attend(problem.q, 0, problem.scale).tobytes()


def test_wrong_sizes_are_refused() -> None:
    problem = make_problem(70, 2, 2, 16, 16)
    cache = filled(problem, "f16")
    with pytest.raises(ValueError, match="needs 3 pages but page_table has 2"):
        cache.append(problem.k, problem.v, 100)
    with pytest.raises(ValueError, match=r"k must be \[n_tokens, 2, 16\]"):
        cache.append(problem.k[:, :1].copy(), problem.v, 0)
    with pytest.raises(ValueError, match="3 query heads"):
        cache.attend(problem.q[:, :3].copy(), 0, 1.0)
    with pytest.raises(ValueError, match="position0 -1"):
        cache.attend(problem.q, -1, 1.0)
    with pytest.raises(ValueError, match="n_keys 10"):
        cache.attend(problem.q, 0, 1.0, n_keys=10)
    with pytest.raises(ValueError, match="scale"):
        cache.attend(problem.q, 0, float("nan"))
    cache.page_table[1] = 99
    with pytest.raises(ValueError, match=r"page_table\[1\] = 99"):
        cache.attend(problem.q, 0, 1.0)
    with pytest.raises(ValueError, match="'q4' is not one of"):
        _native.KVLayout("q4", 1, 16, 16)
    with pytest.raises(ValueError, match="head dimension 0"):
        _native.KVLayout("f16", 1, 0, 16)
