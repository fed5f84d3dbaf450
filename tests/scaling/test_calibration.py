"""Marks are learnt from some problems and judged on others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.calibration import (
    HIGHEST,
    LOWEST,
    Marks,
    area_within,
    fit,
    hash_of,
    parse_marks,
    split,
    standardised,
)
from capax.scaling.marked_votes import marked_votes
from capax.scaling.markers import Traces
from capax.scaling.selecting import Pool
from capax.scaling.selection import Answers


def made(n_problems: int, effect: float, seed: int = 0, k: int = 12) -> Traces:
    """Samples whose chance to be right falls with their length within the problem by `effect`."""
    rng = np.random.default_rng(seed)
    features = np.zeros((n_problems, k, 4))
    features[..., 0] = rng.normal(100, 20, (n_problems, k)) + rng.normal(0, 50, (n_problems, 1))
    features[..., 3] = rng.random((n_problems, k))
    z = np.stack([standardised(f) for f in features])[..., 0]
    correct = rng.random(z.shape) < 1 / (1 + np.exp(effect * z))
    n = n_problems * k
    return Traces(
        np.repeat([f"p{i}" for i in range(n_problems)], k), features.reshape(n, 4),
        correct.ravel(), np.zeros(n, bool), np.full(n, ""), np.zeros(3, np.int64),
    )  # fmt: skip


def test_the_effect_that_is_there_is_learnt() -> None:
    dev, test = split(made(400, 1.0))
    found = fit(dev)
    assert found.marks.length == pytest.approx(-1.0, abs=0.15)
    assert abs(found.marks.discourse) < 0.15
    assert found.marks.hedging == found.marks.thinking == 0
    area = area_within(found, test)
    assert 0.7 < area.low < area.mean < area.high < 0.8
    assert area.shuffled == pytest.approx(0.5, abs=0.03)


def test_no_effect_is_none_on_other_problems() -> None:
    dev, test = split(made(400, 0.0))
    area = area_within(fit(dev), test)
    assert area.low < 0.5 < area.high


def test_the_halves_share_no_problem_and_depend_on_ids_alone() -> None:
    data = made(100, 1.0)
    dev, test = split(data)
    names = set(dev.problems), set(test.problems)
    assert not names[0] & names[1]
    assert min(map(len, names)) > 30
    backwards = split(data.where(np.arange(len(data.correct))[::-1]))
    assert set(backwards[0].problems) == names[0]


def test_judging_what_was_fitted_on_is_refused() -> None:
    data = made(100, 1.0)
    dev, test = split(data)
    found = fit(dev)
    assert found.problem_hashes == {hash_of(name) for name in set(dev.problems)}
    one_of_both = data.where(np.isin(data.problems, [*test.problems, dev.problems[0]]))
    for refused in (data, dev, one_of_both):
        with pytest.raises(ConfigError, match="were fitted on"):
            area_within(found, refused)
        with pytest.raises(ConfigError, match="were fitted on"):
            marked_votes([], refused, found, 1)


def test_weights_are_bounded_log_odds_or_odds() -> None:
    features = np.zeros((3, 4))
    features[:, 0] = [1, 2, 3]
    extreme = Marks(0.0, -50.0)
    chances = extreme.chances(features)
    assert chances.tolist() == pytest.approx([HIGHEST, 0.5, LOWEST])
    logs = extreme.weights(features, 1)
    assert logs.tolist() == pytest.approx([np.log(49), 0, -np.log(49)])
    assert extreme.weights(features, 5).tolist() == pytest.approx((logs + np.log(5)).tolist())
    assert extreme.weights(features, 5, odds=True).tolist() == pytest.approx([49, 1, 1 / 49])
    assert extreme.weights(features, 0).tolist() == pytest.approx(logs.tolist())


def test_equal_features_weigh_alike() -> None:
    chances = Marks(1.0, -3.0, 1.0, 1.0, 1.0).chances(np.full((4, 4), 7.1))
    assert np.ptp(chances) == 0


def test_marks_are_read_as_they_are_spelled() -> None:
    marks = Marks(3.25, -1.5, 0.0, 0.125, 1e-3)
    assert parse_marks(str(marks)) == marks


@pytest.mark.parametrize("text", ["", "1/2", "1/2/3/4/x", "1/2/3/4/nan", "1/2/3/4/101"])
def test_marks_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="marks are"):
        parse_marks(text)


def test_few_problems_or_one_outcome_are_refused() -> None:
    with pytest.raises(ConfigError, match="10 problems or more"):
        fit(made(9, 1.0))
    data = made(20, 1.0)
    with pytest.raises(ConfigError, match="right and wrong"):
        fit(replace(data, correct=np.ones_like(data.correct)))
    with pytest.raises(ConfigError, match="10 problems or more"):
        fit(replace(data, capped=np.ones_like(data.correct)))


def pools_of(data: Traces) -> list[Pool]:
    """Right samples answer 1, wrong ones 2 or 3."""
    pools = []
    for name in dict.fromkeys(map(str, data.problems)):
        rows = data.problems == name
        right = data.correct[rows]
        answers = ["1" if r else str(2 + i % 2) for i, r in enumerate(right)]
        pools.append(Pool(name, Answers(answers, right), np.ones(right.size, np.int64)))
    return pools


def test_marked_votes_gain_where_marks_tell_and_only_there() -> None:
    data = made(240, 2.0)
    pools = pools_of(data)
    dev, test = split(data)
    found = marked_votes(pools, test, fit(dev), 6)
    assert found.marked - found.vote > 4 * found.stderr > 0
    assert found.n_problems == len(set(test.problems))
    nothing = made(240, 0.0)
    dev, test = split(nothing)
    same = marked_votes(pools_of(nothing), test, fit(dev), 6)
    assert abs(same.marked - same.vote) < 4 * same.stderr


def test_votes_with_equal_marks_are_the_plain_vote() -> None:
    data = made(40, 1.0)
    flat = replace(data, features=np.ones_like(data.features))
    dev, test = split(flat)
    whole = marked_votes(pools_of(flat), test, fit(dev), 12)
    assert whole.marked == pytest.approx(whole.vote)
    assert whole.marked_odds == pytest.approx(whole.vote)
    with pytest.raises(ConfigError, match="k is 13"):
        marked_votes(pools_of(flat), test, fit(dev), 13)


def test_a_sample_without_an_answer_is_no_measure_for_the_others() -> None:
    """One endless trace would make all others alike; the strategy leaves it out as well."""
    data = made(60, 3.0, k=6)
    dev, test = split(data)
    calibration = fit(dev)
    pools = pools_of(data)
    before = marked_votes(pools, test, calibration, 6)
    longer, answers = [], []
    for pool in pools:
        rows = data.problems == pool.problem_id
        longer.append(np.vstack([data.features[rows], [1e6, 0, 0, 0]]))
        given = [*pool.answers.answers, None], [*pool.answers.correct, 0]
        answers.append(Pool(pool.problem_id, Answers(*given), np.ones(7, np.int64)))
    grown = Traces(
        np.repeat([pool.problem_id for pool in pools], 7), np.concatenate(longer),
        np.concatenate([p.answers.correct > 0 for p in answers]), np.zeros(7 * 60, bool),
        np.full(7 * 60, ""), np.zeros(3, np.int64),
    )  # fmt: skip
    after = marked_votes(answers, split(grown)[1], calibration, 7)
    assert after.marked == pytest.approx(before.marked)
    assert after.marked_odds == pytest.approx(before.marked_odds)
