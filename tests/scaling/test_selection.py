"""Selectors: they see no correctness, share ties, and count missing answers as no vote."""

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.selection import SELECTORS, Answers, accuracy_of, best, majority, weighted


def codes(*answers: str | None) -> np.ndarray:
    return Answers(answers, np.zeros(len(answers))).codes


def test_majority_shares_ties() -> None:
    assert majority(codes("a", "a", "b"), None).tolist() == [0.5, 0.5, 0]
    assert majority(codes("a", "b"), None).tolist() == [0.5, 0.5]
    assert majority(codes("a", "a", "b", "b", "c"), None) == pytest.approx([0.25] * 4 + [0])


def test_missing_answers_win_nothing_unless_all_miss() -> None:
    assert majority(codes(None, None, "b"), None).tolist() == [0, 0, 1]
    assert majority(codes(None, None), None).tolist() == [0.5, 0.5]


def test_scores_weigh_votes_and_pick_the_best() -> None:
    scores = np.array([0.1, 0.1, 0.9])
    assert weighted(codes("a", "a", "b"), scores).tolist() == [0, 0, 1]
    assert best(codes("a", "a", "b"), scores).tolist() == [0, 0, 1]
    assert best(codes("a", "b"), np.array([1.0, 1.0])).tolist() == [0.5, 0.5]
    assert weighted(codes("a", "b"), np.array([-3.0, -1.0])).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="needs a score"):
        weighted(codes("a"), None)


@pytest.mark.parametrize("name", SELECTORS)
def test_what_is_picked_does_not_depend_on_what_is_right(name: str) -> None:
    rng = np.random.default_rng(0)
    answers = [str(x) for x in rng.integers(0, 4, 50)]
    scores = rng.random(50)
    right = rng.random(50) < 0.5
    ones = accuracy_of(SELECTORS[name], [Answers(answers, right, scores)], [7])[0].accuracy
    zeros = accuracy_of(SELECTORS[name], [Answers(answers, ~right, scores)], [7])[0].accuracy
    assert ones + zeros == pytest.approx(1)  # the same picks: their verdicts are complements


def test_one_sample_is_the_single_attempt() -> None:
    problem = Answers(["a", "b", "c", "d"], np.array([True, False, False, False]))
    (at,) = accuracy_of(majority, [problem], [1], subsets=2000)
    assert at.accuracy == pytest.approx(0.25, abs=0.04)
    with pytest.raises(ConfigError, match="must be 1 to 4"):
        accuracy_of(majority, [problem], [5])
    with pytest.raises(ConfigError, match="as many"):
        Answers(["a"], np.array([True, False]))
