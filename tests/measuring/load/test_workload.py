"""Loads follow from their seed and have the distributions they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.measuring.load.workload import (
    arrivals,
    plan_load,
    prompt_of,
    random_lengths,
    sharegpt_like_lengths,
)


def test_arrivals_ascend_at_the_rate_asked_for() -> None:
    for burstiness in (0.2, 1.0, 50.0):
        at = arrivals(2000, 4.0, burstiness, seed=3)
        assert at[0] == 0
        assert (np.diff(at) >= 0).all()
        assert at[-1] == pytest.approx(1999 / 4.0)


def test_poisson_gaps_have_the_spread_of_an_exponential() -> None:
    gaps = np.diff(arrivals(20_000, 10.0, 1.0, seed=1))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.05)
    assert (gaps > 0.1).mean() == pytest.approx(math.exp(-1), abs=0.02)


def test_burstiness_spreads_or_evens_the_gaps() -> None:
    spread = [
        (lambda gaps: gaps.std() / gaps.mean())(np.diff(arrivals(20_000, 10.0, b, seed=1)))
        for b in (0.25, 1.0, 4.0)
    ]
    assert spread == pytest.approx([2.0, 1.0, 0.5], rel=0.1)  # 1 / sqrt(burstiness)


def test_an_infinite_rate_lets_all_arrive_at_once() -> None:
    assert arrivals(5, math.inf, 1.0, seed=0).tolist() == [0.0] * 5
    assert arrivals(0, 1.0, 1.0, seed=0).tolist() == []
    assert arrivals(1, 1.0, 1.0, seed=0).tolist() == [0.0]


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (1, 0.0),
                                                  (1, math.nan), (1, math.inf)])  # fmt: skip
def test_impossible_rates_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ConfigError, match=r"rate|burstiness"):
        arrivals(5, rate, burstiness, seed=0)


def test_lengths_have_the_averages_reported_of_sharegpt() -> None:
    lengths = sharegpt_like_lengths(20_000, seed=0)
    assert np.mean([x.n_prompt for x in lengths]) == pytest.approx(161, rel=0.1)
    assert np.mean([x.n_answer for x in lengths]) == pytest.approx(338, rel=0.1)
    assert min(min(x) for x in lengths) >= 4
    assert max(max(x) for x in lengths) <= 1024
    short = sharegpt_like_lengths(500, seed=0, max_prompt=64, max_answer=32)
    assert max(x.n_prompt for x in short) <= 64
    assert max(x.n_answer for x in short) <= 32


def test_random_lengths_stay_within_their_range() -> None:
    assert set(random_lengths(50, 0, 10, 20)) == {(10, 20)}
    varied = random_lengths(500, 0, 100, 20, 0.5)
    assert {min(x.n_prompt for x in varied), max(x.n_prompt for x in varied)} == {50, 150}
    with pytest.raises(ConfigError, match="range ratio"):
        random_lengths(1, 0, 10, 10, 1.0)


def test_the_seed_decides_everything() -> None:
    def load(seed: int) -> object:
        lengths = sharegpt_like_lengths(20, seed)
        return plan_load(lengths, arrivals(20, 2.0, 1.0, seed), seed, n_prefix=7)

    assert load(1) == load(1)
    assert load(1) != load(2)


def test_prompts_differ_from_their_first_word_on_behind_a_common_prefix() -> None:
    load = plan_load(random_lengths(30, 0, 12, 5), np.zeros(30), 0, n_prefix=9)
    prefix = load[0].prompt.split()[:9]
    assert all(planned.prompt.split()[:9] == prefix for planned in load)
    assert len({planned.prompt.split()[9] for planned in load}) == 30
    assert {len(planned.prompt.split()) for planned in load} == {21}
    assert {planned.n_prompt for planned in load} == {21}
    assert len(prompt_of(50, 0, 3).split()) == 50
