"""What `systems/think-deep-think-fast.md` demands of votes: the exact curve and its limits."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.selection import Answers, accuracy_of, majority
from capax.scaling.voting_curve import vote_accuracy


def counted(right: int, wrong: list[int], missing: int, k: int) -> float:
    """Average over all k-subsets, ties shared."""
    names = ["right"] * right + [f"w{i}" for i, size in enumerate(wrong) for _ in range(size)]
    answers: list[str | None] = [*names, *([None] * missing)]
    problem = Answers(answers, np.array([a == "right" for a in answers]))
    shares = [
        majority(problem.codes[list(at)], None) @ problem.correct[list(at)]
        for at in combinations(range(len(answers)), k)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("right", "wrong", "missing"),
    [(3, [4, 2], 0), (4, [3, 3], 0), (1, [1, 1, 1, 1], 2), (2, [5], 3), (0, [3, 2], 1), (5, [], 4)],
)
def test_the_curve_is_the_average_over_all_subsets(
    right: int, wrong: list[int], missing: int
) -> None:
    n = right + sum(wrong) + missing
    for k in range(1, n + 1):
        exact = vote_accuracy(right, wrong, k, without_answer=missing)
        assert exact == pytest.approx(counted(right, wrong, missing, k), abs=1e-9)


def test_reference_values_rise_before_they_fall() -> None:
    wrong = [25, 10, 5, 2, 1, 1]
    got = [vote_accuracy(20, wrong, k) for k in (1, 2, 3, 8, 32, 64)]
    assert got == pytest.approx([0.3125, 0.3125, 0.322421, 0.351425, 0.231324, 0.0], abs=5e-7)


def test_two_classes_with_the_wrong_one_larger_only_fall() -> None:
    curve = [vote_accuracy(4, [6], k) for k in range(1, 11)]
    assert curve[0] == pytest.approx(0.4)
    assert curve[1] == pytest.approx(0.4)
    assert curve[2] == pytest.approx(1 / 3)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve))
    assert vote_accuracy(400, [600], 3) == pytest.approx(0.35186, abs=5e-6)


def test_limits_are_one_sample_and_the_whole_vote() -> None:
    assert vote_accuracy(7, [2, 1], 1) == pytest.approx(0.7)
    assert vote_accuracy(7, [2, 1], 10) == pytest.approx(1.0)
    assert vote_accuracy(3, [3, 3], 9) == pytest.approx(1 / 3)


def test_random_subsets_agree_with_the_curve() -> None:
    answers = ["r"] * 20 + ["a"] * 25 + ["b"] * 10 + ["c"] * 9
    problem = Answers(answers, np.array([a == "r" for a in answers]))
    [found] = accuracy_of(majority, [problem], [9], subsets=2000, seed=3)
    exact = vote_accuracy(20, [25, 10, 9], 9)
    assert abs(found.accuracy - exact) <= 4 * found.std / np.sqrt(2000)


@pytest.mark.parametrize("k", [0, 11])
def test_k_is_of_the_samples(k: int) -> None:
    with pytest.raises(ConfigError):
        vote_accuracy(4, [6], k)
