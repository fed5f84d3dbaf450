"""Product quantisation: nearest centroids, k-means, packed codes, scores and sums over codes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capax import _native
from capax.kv.codebook import bfloat16_bits

HEAD_DIM = 64
SHAPES = [(32, 8), (16, 8), (64, 8), (32, 6), (32, 7), (32, 4), (16, 5), (64, 2), (16, 12), (8, 9)]
N_POSITIONS = 128

# |score - float64| and |sum of values - float64|, for |q . k| / sqrt(d) up to 50: the rounding of
# 64 products of up to 400. Measured when written: 4e-5.
SCORE_TOLERANCE = 4e-4


def points(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def book(n_subspaces: int, bits: int, seed: int = 0, head_dim: int = HEAD_DIM) -> np.ndarray:
    """Random centroids [n_subspaces, 2^bits, sub_dim], rounded to bfloat16."""
    shape = (n_subspaces, 1 << bits, head_dim // n_subspaces)
    centroids = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    centroids[0, -1] = np.nan
    return widened(bfloat16_bits(centroids))


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def codec(k: np.ndarray, v: np.ndarray, **options: Any) -> _native.PQCodec:
    dims = [b.shape[0] * b.shape[2] for b in (k, v)]
    return _native.PQCodec([bfloat16_bits(k)], [bfloat16_bits(v)], [0], [0], 1, *dims, **options)


def rotary(head_dim: int = HEAD_DIM) -> tuple[np.ndarray, np.ndarray, bool]:
    table = np.zeros((N_POSITIONS, head_dim // 2), np.float32)
    return table, table, False


def encoded(c: _native.PQCodec, k: np.ndarray, v: np.ndarray) -> bytes:
    return c.encode(0, 0, 0, k, v, *rotary(c.k_dim))


def decoded(c: _native.PQCodec, codes: bytes) -> tuple[np.ndarray, np.ndarray]:
    return c.decode(0, 0, 0, codes, *rotary(c.k_dim))


def nearest_brute_force(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the first centroid of least distance, the distance rounded as pq.h says."""
    away = x[:, None] - centroids[None]
    total = (away[..., 0].astype(np.float64) ** 2).astype(np.float32)
    for d in range(1, x.shape[1]):  # float64 holds a product of float32 exactly: one rounding
        total = (away[..., d].astype(np.float64) ** 2 + total).astype(np.float32)
    return np.where(np.isnan(total), np.inf, total).argmin(1)


# ---- nearest centroid ---------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 8])
def test_nearest_equals_brute_force(isa: str, dim: int) -> None:
    x, centroids = points(10_000, dim), points(256, dim, seed=1)
    assert np.array_equal(
        _native.nearest_centroids(x, centroids), nearest_brute_force(x, centroids)
    )


def test_the_lowest_of_equals_is_nearest(isa: str) -> None:
    centroids = np.repeat(points(20, 2), 3, axis=0)[::-1].copy()
    found = _native.nearest_centroids(points(1000, 2, seed=2), centroids)
    assert np.all(found % 3 == 0)
    midway = np.array([[-1, 0], [1, 0]], np.float32)
    assert _native.nearest_centroids(np.zeros((5, 2), np.float32), midway).tolist() == [0] * 5


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 63, 64, 65])
def test_any_number_of_points(isa: str, n: int) -> None:
    x, centroids = points(n, 2), points(7, 2, seed=1)
    assert np.array_equal(
        _native.nearest_centroids(x, centroids), nearest_brute_force(x, centroids)
    )


# ---- k-means ------------------------------------------------------------------------------------


def clusters(n: int, k: int, iterations: int = 25, seed: int = 0, threads: int = 1) -> np.ndarray:
    return _native.fit_clusters(
        points(n, 6).reshape(n, 3, 2), np.full(3, k, np.int32), iterations, seed, threads
    )


def error(x: np.ndarray, centroids: np.ndarray) -> float:
    return float(((x - centroids[_native.nearest_centroids(x, centroids)]) ** 2).mean())


def test_clusters_are_the_same_on_every_isa_and_with_any_threads(
    on_every_isa: Callable[[Callable[[], Any]], dict[str, Any]],
) -> None:
    results = on_every_isa(lambda: [clusters(3000, 40, threads=t).tobytes() for t in (1, 2, 5)])
    assert len({bits for of_isa in results.values() for bits in of_isa}) == 1


def test_another_seed_gives_other_clusters() -> None:
    assert not np.array_equal(clusters(3000, 40, seed=0), clusters(3000, 40, seed=1))


def test_iterations_lower_the_error_and_end_at_means() -> None:
    x = points(5000, 2)[:, None]
    errors = []
    for iterations in (0, 1, 3, 10, 200):
        fitted = _native.fit_clusters(x, np.array([32], np.int32), iterations, 7, 1)[0]
        errors.append(error(x[:, 0], fitted))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]
    assigned = _native.nearest_centroids(x[:, 0], fitted)
    means = np.stack([x[assigned == c, 0].mean(0) for c in range(32)])
    assert np.allclose(means, fitted, atol=1e-5)


def test_no_more_points_than_clusters_are_returned_themselves() -> None:
    x = points(10, 4).reshape(10, 2, 2)
    fitted = _native.fit_clusters(x, np.array([10, 16], np.int32), 25, 0, 1)
    assert np.array_equal(fitted[0, :10], x[:, 0])
    assert np.all(np.isnan(fitted[0, 10:]))
    assert np.array_equal(fitted[1, :10], x[:, 1])
    assert np.all(fitted[1, 10:] == x[0, 1])


def test_fewer_distinct_points_than_clusters_lose_none() -> None:
    few = points(9, 2)
    x = few[np.random.default_rng(3).integers(0, 9, 500)][:, None].copy()
    fitted = _native.fit_clusters(x, np.array([16], np.int32), 25, 0, 1)[0]
    assert {tuple(p) for p in x[:, 0]} <= {tuple(p) for p in fitted}


def test_an_empty_cluster_takes_the_farthest_point() -> None:
    """Points in two heaps and one far away: 3 clusters end with no error to speak of."""
    x = np.concatenate([np.zeros((500, 2)), np.ones((500, 2)), [[50, 50]]]).astype(np.float32)
    for seed in range(20):
        fitted = _native.fit_clusters(x[:, None], np.array([3], np.int32), 25, seed, 1)[0]
        assert error(x, fitted) == 0


@pytest.mark.parametrize(
    ("x", "n", "message"),
    [
        (np.full((4, 1, 2), np.nan, np.float32), [2], "not finite"),
        (np.zeros((4, 2), np.float32), [2], r"\[n, n_sets, dim\]"),
        (np.zeros((0, 1, 2), np.float32), [2], "none of them 0"),
        (np.zeros((4, 1, 2), np.float32), [0], "n_clusters 0 is not in"),
        (np.zeros((4, 1, 2), np.float32), [5000], "n_clusters 5000 is not in"),
        (np.zeros((4, 1, 2), np.float32), [2, 2], r"n_clusters must be \[1\]"),
    ],
)
def test_impossible_fits_are_refused(x: np.ndarray, n: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _native.fit_clusters(x, np.array(n, np.int32), 1, 0, 1)


# ---- codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_subspaces", "bits"), SHAPES)
def test_codes_take_their_bits_and_stand_for_the_nearest(
    isa: str, n_subspaces: int, bits: int
) -> None:
    books = book(n_subspaces, bits, 1), book(n_subspaces, bits, 2)
    x = points(64, HEAD_DIM, 3), points(64, HEAD_DIM, 4)
    c = codec(*books)
    codes = encoded(c, *x)
    assert len(codes) == 2 * 64 * n_subspaces * bits // 8
    for centroids, vectors, back in zip(books, x, decoded(c, codes), strict=True):
        cut = vectors.reshape(64, n_subspaces, -1)
        for m in range(n_subspaces):
            wide = centroids[m]
            expected = wide[nearest_brute_force(cut[:, m], wide)]
            assert np.array_equal(back.reshape(cut.shape)[:, m], expected)


def test_keys_and_values_may_be_cut_differently(isa: str) -> None:
    k, v = book(32, 8, 1), book(8, 10, 2)
    c = codec(k, v)
    codes = encoded(c, points(64, 64), points(64, 64, 1))
    assert len(codes) == 64 * (32 * 8 + 8 * 10) // 8
    again = encoded(c, *decoded(c, codes))
    assert again == codes  # a centroid is its own nearest


@pytest.mark.parametrize("head_dim", [16, 24, 40, 80, 128])
def test_heads_of_any_size(isa: str, head_dim: int) -> None:
    books = [book(head_dim // 2, 8, seed, head_dim) for seed in (1, 2)]
    c = codec(*books)
    _, v = decoded(c, encoded(c, points(64, head_dim, 3), points(64, head_dim, 4)))
    cut = points(64, head_dim, 4).reshape(64, -1, 2)
    wide = books[1][3]
    assert np.array_equal(v.reshape(cut.shape)[:, 3], wide[nearest_brute_force(cut[:, 3], wide)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("n_subspaces", "bits"), [(32, 8), (32, 4), (16, 12)])
def test_a_vector_that_is_not_finite_stays_so(
    isa: str, n_subspaces: int, bits: int, bad: float
) -> None:
    c = codec(book(n_subspaces, bits, 1), book(n_subspaces, bits, 2))
    k, v = points(64, HEAD_DIM, 3), points(64, HEAD_DIM, 4)
    k[5, 7] = v[63, 60] = bad
    back_k, back_v = decoded(c, encoded(c, k, v))
    assert [t for t in range(64) if not np.isfinite(back_k[t]).all()] == [5]
    assert [t for t in range(64) if not np.isfinite(back_v[t]).all()] == [63]


def test_layers_without_a_book_are_exact(isa: str) -> None:
    b = bfloat16_bits(book(32, 8))
    c = _native.PQCodec([b], [b], [-1, 0], [-1, 0], 1, 64, 64)
    k, v = (points(64, 64, s).astype(np.float16).astype(np.float32) for s in (1, 2))
    back_k, back_v = c.decode(0, 0, 0, c.encode(0, 0, 0, k, v, *rotary()), *rotary())
    assert np.array_equal(back_k, k)
    assert np.array_equal(back_v, v)
    assert c.page_nbytes == 64 * (2 * 2 * 64 + 2 * 32)


# ---- attention over codes -----------------------------------------------------------------------


@pytest.mark.parametrize(("n_subspaces", "bits"), SHAPES)
@pytest.mark.parametrize("order", ["vector", "subspace", "table"])
def test_scores_equal_decoding_first(isa: str, n_subspaces: int, bits: int, order: str) -> None:
    c = codec(
        book(n_subspaces, bits, 1) * 4,
        book(n_subspaces, bits, 2),
        by_subspace=order != "vector",
        uses_tables=order == "table",
    )
    codes = encoded(c, points(64, HEAD_DIM, 3) * 4, points(64, HEAD_DIM, 4))
    keys = decoded(c, codes)[0]
    q = points(48, HEAD_DIM, 5)
    q *= 400 / np.abs(q @ keys.T).max()  # |q . k| / sqrt(64) up to 50
    scores = c.score(0, 0, 0, codes, *rotary(), q)
    exact = q.astype(np.float64) @ keys.astype(np.float64).T
    assert np.abs(scores - exact).max() / 8 < SCORE_TOLERANCE / 8
    for n in (1, 2, 3, 4, 5, 6, 7):  # a row does not depend on the others
        assert np.array_equal(c.score(0, 0, 0, codes, *rotary(), q[:n].copy()), scores[:n])


@pytest.mark.parametrize(("n_subspaces", "bits"), SHAPES)
def test_tables_and_centroids_give_the_same_bits(isa: str, n_subspaces: int, bits: int) -> None:
    books = book(n_subspaces, bits, 1), book(n_subspaces, bits, 2)
    c = codec(*books, by_subspace=True, uses_tables=True)
    codes, q = encoded(c, points(64, 64), points(64, 64, 1)), points(9, 64, 2)
    looked_up = c.score(0, 0, 0, codes, *rotary(), q)
    assert np.array_equal(looked_up, c.score(0, 0, 0, codes, *rotary(), q, use_tables=False))


@pytest.mark.parametrize(("n_subspaces", "bits"), SHAPES)
def test_every_isa_gives_the_same_bits(
    on_every_isa: Callable[[Callable[[], Any]], dict[str, Any]], n_subspaces: int, bits: int
) -> None:
    books = book(n_subspaces, bits, 1), book(n_subspaces, bits, 2)
    x = points(64, HEAD_DIM, 3), points(64, HEAD_DIM, 4)
    q = points(7, HEAD_DIM, 5)

    def compute() -> bytes:
        found = []
        for options in ({}, {"by_subspace": True}, {"by_subspace": True, "uses_tables": True}):
            c = codec(*books, **options)
            codes = encoded(c, *x)
            parts = [c.score(0, 0, 0, codes, *rotary(), q[:n].copy()) for n in (1, 3, 7)]
            parts += decoded(c, codes)
            found += [codes, *(part.tobytes() for part in parts)]
        return b"".join(found)

    assert len(set(on_every_isa(compute).values())) == 1


# ---- what a codec refuses -----------------------------------------------------------------------


def broken(change: Callable[[np.ndarray], None]) -> np.ndarray:
    centroids = book(32, 8)
    change(centroids)
    return centroids


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (broken(lambda b: b[0, -1].fill(0)), "must be NaN"),
        (broken(lambda b: b[3, 4].fill(np.inf)), "centroid 4 of sub-space 3 is not finite"),
        (book(32, 8)[:, :200].copy(), "a book of 200 centroids"),
        (book(16, 8), "channels does not fit heads|do not fit|does not fit heads of 64"),
        (np.zeros((1, 256, 64), np.float32), "sub-spaces of 64 channels"),
        (book(4, 1, head_dim=64), "whole bytes"),
    ],
)
def test_books_that_cannot_be_are_refused(k: np.ndarray, message: str) -> None:
    v = book(32, 8)
    with pytest.raises(ValueError, match=message):
        _native.PQCodec(
            [bfloat16_bits(k[:, :, :2] if k.shape[0] == 16 else k)],
            [bfloat16_bits(v)], [0], [0], 1, 64, 64,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("books", "message"),
    [([5], "names book 5 of 1"), ([-2], "names book -2"), ([0, -1], "some heads only")],
)
def test_books_that_do_not_exist_are_refused(books: list[int], message: str) -> None:
    b = bfloat16_bits(book(32, 8))
    with pytest.raises(ValueError, match=message):
        _native.PQCodec([b], [b], books, books, len(books), 64, 64)
