"""Survival and hazard against closed cases."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.measuring.procbench.hazard import Chain, constant_hazard, kaplan_meier


@given(
    st.integers(2, 25).flatmap(
        lambda s: st.lists(st.integers(0, s).map(lambda k: Chain(k, s)), min_size=1)
    )
)
def test_survival_of_one_length_is_the_fraction(chains: list[Chain]) -> None:
    for row in kaplan_meier(chains):
        share = sum(c.pml >= row.step for c in chains) / len(chains)
        assert row.survival == pytest.approx(share, abs=1e-12)
        assert row.fraction == share


def test_pooled_lengths_differ_from_the_fraction() -> None:
    chains = [Chain(2, 2)] * 10 + [Chain(4, 4)] * 5 + [Chain(0, 4)] * 5
    third = kaplan_meier(chains)[2]
    assert third.survival == pytest.approx(0.75)
    assert third.fraction == 0.5


def test_survival_ends_where_no_chain_is_at_risk() -> None:
    rows = kaplan_meier([Chain(1, 5)] * 3)
    assert [(r.step, r.hazard, r.survival) for r in rows] == [(1, 0.0, 1.0), (2, 1.0, 0.0)]
    assert kaplan_meier([]) == []


def test_a_constant_hazard_is_found_again() -> None:
    """Exact counts of 0.8 ** s: 5 ** 6 chains of each length up to 6."""
    chains = []
    for steps in range(2, 7):
        left = 5**6
        for step in range(1, steps + 1):
            chains += [Chain(step - 1, steps)] * (left // 5)
            left -= left // 5
        chains += [Chain(steps, steps)] * left
    fit = constant_hazard(chains)
    assert fit is not None
    assert fit.hazard == pytest.approx(0.2, abs=1e-12)
    assert fit.r2 == pytest.approx(1.0, abs=1e-12)
    assert fit.half_steps == pytest.approx(math.log(0.5) / math.log(0.8))


def test_edges_of_the_fit() -> None:
    assert constant_hazard([]) is None
    whole = constant_hazard([Chain(3, 3)] * 4)
    assert whole is not None
    assert (whole.hazard, whole.r2, whole.half_steps) == (0.0, None, None)
    none = constant_hazard([Chain(0, 2), Chain(0, 3)])
    assert none is not None
    assert (none.hazard, none.half_steps) == (1.0, 0.0)
