"""Kernels of bounded caches against numpy: moving entries, summing attention, gates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from capax import _native

ISAS = [name for name, _ in _native.supported_isas()]
HEADS, DIM, GROUP = 2, 24, 3
TYPES = ("f32", "f16", "bf16")


@pytest.fixture
def restore_isa() -> Iterator[None]:
    before = _native.isa()
    yield
    _native.select_isa(before)


def filled(kv_type: str, n: int, seed: int = 0) -> tuple[tuple[object, ...], np.ndarray]:
    """Return where entries lie, and their keys [n, HEADS, DIM]."""
    layout = _native.KVLayout(kv_type, HEADS, DIM, DIM)
    n_pages = -(-n // 64)
    pool = np.zeros((n_pages, layout.layer_page_nbytes), np.uint8)
    place = (layout, pool, 0, np.arange(n_pages, dtype=np.int32))
    k, v = np.random.default_rng(seed).standard_normal((2, n, HEADS, DIM)).astype(np.float32)
    _native.kv_append(*place, k, v, 0)
    return place, k


def attended(place: tuple[object, ...], n: int) -> np.ndarray:
    q = np.random.default_rng(9).standard_normal((1, HEADS * GROUP, DIM)).astype(np.float32)
    return _native.kv_attend(*place, q, n - 1, 0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kv_type", TYPES)
def test_kept_entries_are_as_if_only_they_had_been_written(kv_type: str) -> None:
    rng = np.random.default_rng(1)
    keep = np.stack([np.sort(rng.permutation(150)[:70]) for _ in range(HEADS)]).astype(np.int32)
    place, _ = filled(kv_type, 150)
    layout = place[0]
    k, v = np.random.default_rng(0).standard_normal((2, 150, HEADS, DIM)).astype(np.float32)
    fresh = (layout, np.zeros_like(place[1]), 0, place[3])
    own_k, own_v = (np.stack([x[keep[h], h] for h in range(HEADS)], axis=1) for x in (k, v))
    _native.kv_append(*fresh, own_k, own_v, 0)
    _native.kv_keep(*place, keep, 150)  # type: ignore[arg-type]
    assert np.array_equal(attended(place, 70), attended(fresh, 70))


@pytest.mark.parametrize(
    "keep", [[[0, 0], [0, 1]], [[1, 0], [0, 1]], [[0, 1], [0, 10]], [[-1, 1], [0, 1]]]
)
def test_entries_that_do_not_ascend_or_exist_are_refused(keep: list[list[int]]) -> None:
    place, _ = filled("f16", 10)
    with pytest.raises(ValueError, match="must ascend strictly below 10"):
        _native.kv_keep(*place, np.array(keep, np.int32), 10)  # type: ignore[arg-type]


def test_int8_entries_are_refused() -> None:
    place, _ = filled("int8", 10)
    keep, q = np.zeros((HEADS, 1), np.int32), np.zeros((1, HEADS * GROUP, DIM), np.float32)
    with pytest.raises(ValueError, match="not in int8"):
        _native.kv_keep(*place, keep, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not in int8"):
        _native.kv_add_attention(*place, q, 9, 0.2, np.zeros((HEADS, 10), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "scale", "match"),
    [(HEADS + 1, 0.2, "do not divide"), (HEADS, float("nan"), "scale must be finite")],
)
def test_queries_that_do_not_fit_are_refused(heads: int, scale: float, match: str) -> None:
    place, _ = filled("f16", 10)
    q, sums = np.zeros((1, heads, DIM), np.float32), np.zeros((HEADS, 10), np.float32)
    with pytest.raises(ValueError, match=match):
        _native.kv_add_attention(*place, q, 9, scale, sums)  # type: ignore[arg-type]


def softmax_sums(q: np.ndarray, k: np.ndarray, entry0: int, scale: float) -> np.ndarray:
    sums = np.zeros((HEADS, len(k)))
    for t in range(len(q)):
        for head in range(HEADS * GROUP):
            s = k[: entry0 + t + 1, head // GROUP].astype(np.float64) @ q[t, head] * scale
            p = np.exp(s - s.max())
            sums[head // GROUP, : len(s)] += p / p.sum()
    return sums


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_sums_of_attention_are_those_of_numpy(kv_type: str) -> None:
    place, k = filled(kv_type, 150)
    q = np.random.default_rng(3).standard_normal((30, HEADS * GROUP, DIM)).astype(np.float32)
    weights = np.zeros((HEADS, 160), np.float32)
    _native.kv_add_attention(*place, q, 120, 0.2, weights)  # type: ignore[arg-type]
    assert np.allclose(weights[:, :150], softmax_sums(q, k, 120, 0.2), atol=2e-3)
    assert not weights[:, 150:].any()


@pytest.mark.parametrize("isa", ISAS)
def test_sums_do_not_depend_on_chunks_or_instruction_set(isa: str, restore_isa: None) -> None:
    place, _ = filled("f16", 150)
    q = np.random.default_rng(3).standard_normal((30, HEADS * GROUP, DIM)).astype(np.float32)
    seen = []
    for name, chunk in [(ISAS[-1], 30), (isa, 30), (isa, 1), (isa, 7)]:
        _native.select_isa(name)
        weights = np.zeros((HEADS, 150), np.float32)
        for i in range(0, 30, chunk):
            part = np.ascontiguousarray(q[i : i + chunk])
            _native.kv_add_attention(*place, part, 120 + i, 0.2, weights)  # type: ignore[arg-type]
        seen.append(weights)
    for other in seen[1:]:
        assert np.array_equal(seen[0], other)


def gate(normalise: bool) -> tuple[_native.RetentionGate, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    bits = (rng.standard_normal((40, 96)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    p = {
        "w1": (bits.astype(np.uint32) << 16).view(np.float32),
        "b1": rng.standard_normal(40).astype(np.float32),
        "w2": rng.standard_normal((3, 40)).astype(np.float32),
        "bias": np.array([0.0, 8.0, 30.0], np.float32),
    }
    p["w2"][2] = 0.0  # a head that always says log sigmoid(30), about -1e-13
    return _native.RetentionGate(bits, p["b1"], p["w2"], p["bias"], normalise), p


@pytest.mark.parametrize("normalise", [True, False])
def test_a_gate_is_what_numpy_says(normalise: bool) -> None:
    native, p = gate(normalise)
    x = np.random.default_rng(6).standard_normal((7, 96)).astype(np.float32) * 0.05
    said = native.log_beta(x)
    wide = x.astype(np.float64)
    if normalise:
        wide /= np.sqrt((wide**2).mean(-1, keepdims=True))
    h = wide @ p["w1"].T + p["b1"]
    z = (h / (1 + np.exp(-h))) @ p["w2"].T + p["bias"]
    expected = -np.logaddexp(0, -z).T
    assert said.shape == (3, 7)
    assert np.allclose(said, expected, rtol=2e-3, atol=1e-30)
    assert (said <= 0).all()
    assert (said[2] < 0).all()  # never rounded to 0, where tokens would tie


def test_a_gate_says_the_same_of_a_token_alone() -> None:
    native, _ = gate(normalise=True)
    x = np.random.default_rng(6).standard_normal((33, 96)).astype(np.float32)
    together = native.log_beta(x)
    alone = np.concatenate([native.log_beta(row[None]) for row in x], axis=1)
    assert np.array_equal(together, alone)


def test_gates_of_wrong_sizes_are_refused() -> None:
    bits = np.zeros((4, 8), np.uint16)
    ok = np.zeros(4, np.float32), np.zeros((2, 4), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="w2 must be"):
        _native.RetentionGate(bits, ok[0], np.zeros((2, 5), np.float32), ok[2], True)
    with pytest.raises(ValueError, match="b1 must be"):
        _native.RetentionGate(bits, np.zeros(5, np.float32), ok[1], ok[2], True)
    with pytest.raises(ValueError, match="x must be"):
        _native.RetentionGate(bits, *ok, True).log_beta(np.zeros((1, 9), np.float32))
