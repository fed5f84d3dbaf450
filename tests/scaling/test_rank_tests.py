"""Signed ranks, Cliff's delta and Holm's correction against counting and known values."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from capax.scaling.rank_tests import (
    cliffs_delta,
    holm,
    midranks,
    rank_biserial,
    rank_sum_p,
    signed_rank_p,
)


def counted_p(differences: list[float]) -> float:
    """Count all choices of signs."""
    d = np.array([x for x in differences if x])
    ranks = midranks(np.abs(d))
    middle = ranks.sum() / 2
    off = abs(ranks[d > 0].sum() - middle)
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=d.size)]
    return float(np.mean([abs(s - middle) >= off - 1e-9 for s in sums]))


@pytest.mark.parametrize(
    "differences",
    [[1, 2, 3, 4, 5], [1, -2, 3, 4, 5.5, 7], [1, 1, -1, 2, 2, 2, 0], [-3, 3], [0.5]],
)
def test_p_is_the_share_of_all_signs(differences: list[float]) -> None:
    assert signed_rank_p(differences) == pytest.approx(counted_p(differences))
    assert signed_rank_p([-d for d in differences]) == signed_rank_p(differences)


def test_many_differences_are_as_near_as_the_normal_law() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(0.15, 1, 50)
    more = np.append(d, 1e-9)  # one more rank, of no weight: the other way of computing
    assert signed_rank_p(more) == pytest.approx(signed_rank_p(d), rel=0.1)


def test_nothing_to_rank_says_nothing() -> None:
    assert signed_rank_p([]) == signed_rank_p([0.0, 0.0]) == 1.0
    assert rank_biserial([0.0]) == 0.0


def test_chance_gives_small_p_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    ps = [signed_rank_p(rng.normal(size=60)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.085
    ps = [rank_sum_p(rng.integers(0, 5, 30), rng.integers(0, 5, 40)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.085


def test_effect_sizes_have_their_signs_and_bounds() -> None:
    a, b = np.array([1, 2, 3]), np.array([4, 5])
    assert cliffs_delta(a, b) == -1.0
    assert cliffs_delta(b, a) == 1.0
    assert cliffs_delta(a, a) == 0.0
    assert cliffs_delta(np.array([1, 3]), np.array([2, 3])) == pytest.approx((-2 + 1 + 0) / 4)
    assert rank_biserial([1, 2, -3]) == 0.0
    assert rank_biserial([1, 2, 3]) == 1.0
    assert rank_sum_p(np.ones(4), np.ones(5)) == 1.0


def test_holm_corrects_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
