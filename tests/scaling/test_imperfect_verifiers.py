"""Imperfect verifiers: enumeration, random plans, estimates, quadrature."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.errors import ConfigError
from capax.scaling.coverage import BetaBinomial
from capax.scaling.imperfect_verifiers import (
    Attempts,
    Pools,
    ResampleUntil,
    Types,
    VerifierModel,
    audited,
    beta_types,
    ceiling,
    ceiling_line,
    plan,
    trend,
    two_types,
)

chances = st.floats(0.01, 0.99)


@given(
    st.tuples(chances, chances, chances),
    st.tuples(chances, chances, chances),
    st.tuples(chances, chances, chances),
    st.floats(0.5, 1),
    st.sampled_from([0.0, 0.01, 0.2]),
)
def test_plans_are_the_best_of_all_and_fall_with_the_ratio(
    weights: tuple[float, ...],
    success: tuple[float, ...],
    soundness: tuple[float, ...],
    completeness: float,
    cost: float,
) -> None:
    shares = np.array(weights) / sum(weights)
    types = Types(shares, np.array(success), np.array(soundness), completeness)
    attempts = types.attempts
    ks = np.arange(1, 2001)
    survival = attempts.rejected[:, None] ** (ks - 1)
    before = np.inf
    for ratio in (0.0, 0.3, 1.0, 3.0, 20.0):
        value = attempts.right - ratio * attempts.wrong - cost
        rewards = np.concatenate([[0.0], np.cumsum((shares * value) @ survival)])
        try:
            found = plan(types, ratio, cost)
        except ConfigError:
            continue  # types rejected almost equally often
        assert found.reward >= rewards.max() - 1e-9
        if found.attempts is not None and found.attempts <= 2000:
            assert rewards[found.attempts] == pytest.approx(rewards.max(), abs=1e-9)
            assert rewards[found.attempts_99] >= 0.99 * found.reward - 1e-9
        now = np.inf if found.attempts is None else found.attempts
        assert now <= before
        before = now


@pytest.mark.parametrize(("t", "g", "z"), [(1, 1, 2), (2, 1, 3), (0, 2, 3), (3, 0, 2), (1, 3, 2)])
def test_pools_are_the_mean_over_all_orders(t: int, g: int, z: int) -> None:
    n = t + g + z
    pools = Pools(np.array([n]), np.array([t]), np.array([g]))
    orders = set(permutations("t" * t + "g" * g + "z" * z))
    for k in range(1, n + 1):
        firsts = [next((x for x in order[:k] if x != "z"), "z") for order in orders]
        reward = sum({"t": 1.0, "g": -3.0, "z": 0.0}[first] for first in firsts) / len(firsts)
        assert pools.reward(k, 3.0) == pytest.approx(reward, abs=1e-12)
        at_k = [o[k - 1] for o in orders if all(x == "z" for x in o[: k - 1]) and o[k - 1] != "z"]
        rate = pools.false_positive_rate(k)
        if at_k:
            assert rate == pytest.approx(at_k.count("g") / len(at_k), abs=1e-12)
        else:
            assert np.isnan(rate)


def test_accuracy_is_a_mean_over_tasks_not_over_samples() -> None:
    pools = Pools(np.array([1000, 10]), np.array([900, 1]), np.array([100, 9]))
    assert ceiling(pools.attempts).value == pytest.approx((0.9 + 0.1) / 2)


def test_tasks_never_accepted_are_bounds_not_dropped() -> None:
    attempts = Attempts(np.array([0.5, 0.0]), np.array([0.5, 0.0]))
    assert ceiling(attempts)[:] == (0.5, 0.25, 0.75, 1)
    nothing = ceiling(Attempts(np.zeros(2), np.zeros(2)))
    assert np.isnan(nothing.value)
    assert nothing[1:] == (0, 1, 2)


def verdicts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    strong = rng.random((200, 50)) < rng.random((200, 1))
    weak = np.where(strong, rng.random(strong.shape) < 0.95, rng.random(strong.shape) > 0.7)
    return weak, strong


def test_soundness_and_completeness_are_counted() -> None:
    model = VerifierModel(*verdicts())
    soundness, completeness = model.soundness(), model.completeness()
    assert soundness.low < 0.7 < soundness.high
    assert completeness.low < 0.95 < completeness.high
    assert soundness.n_trials + completeness.n_trials == 200 * 50
    assert soundness.value == soundness.n_hits / soundness.n_trials
    pools = model.pools()
    assert (pools.right + pools.wrong).tolist() == model.weak.sum(1).tolist()


def test_the_published_estimate_is_biased_low() -> None:
    weak, strong = verdicts()
    model = VerifierModel(weak | strong, strong)  # strong pass implies weak pass, as it assumes
    assert model.published_soundness() < model.soundness().low


def test_no_wrong_sample_says_nothing_about_soundness() -> None:
    model = VerifierModel(np.ones((3, 4), bool), np.ones((3, 4), bool))
    assert np.isnan(model.soundness().value)
    assert model.soundness()[1:] == (0, 1, 0, 0)


def test_splitting_into_two_types() -> None:
    types = two_types(np.array([0.9, 0.7, 0.1]), 0.8)
    assert types.shares == pytest.approx([2 / 3, 1 / 3])
    assert types.success == pytest.approx([0.8, 0.1])
    assert two_types(np.array([0.1, 0.2]), 0.8).shares.tolist() == [1.0]


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 5.0), (2.0, 3.0), (0.5, 0.2)])
def test_beta_types_integrate_the_beta_distribution(alpha: float, beta: float) -> None:
    types = beta_types(alpha, beta, 1.0)
    assert types.shares @ types.success == pytest.approx(alpha / (alpha + beta), rel=1e-6)
    for k in (1, 10, 300):
        within = types.shares @ types.attempts.accepted_within(k)
        assert within == pytest.approx(BetaBinomial(alpha, beta).at([k])[0], rel=1e-6)
    assert plan(beta_types(alpha, beta, 0.9), 4.0).attempts is not None


def test_belief_turns_to_the_hard_type() -> None:
    types = Types(np.array([0.5, 0.5]), np.array([0.9, 0.2]), np.full(2, 0.8))
    policy = ResampleUntil(types, 0.1, max_attempts=7)
    seen = []
    while policy.pays:
        seen.append(policy.p_correct)
        policy.reject()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(types.attempts.right_if_accepted()[1], abs=1e-3)
    assert len(seen) == 7  # the plan is unbounded
    assert not ResampleUntil(types, 100.0).pays


def test_an_audit_narrows_the_ceiling() -> None:
    mean, deviation = audited(80, 20)
    assert mean == pytest.approx(81 / 102)
    assert audited(800, 200)[1] < deviation / 2


@pytest.mark.parametrize("ratio", [-1.0, float("nan")])
def test_nonsense_is_refused(ratio: float) -> None:
    types = Types(np.ones(1), np.array([0.5]), np.array([0.5]))
    with pytest.raises(ConfigError, match="negative"):
        plan(types, ratio)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Attempts.of(np.array([1.5]), 0.5)
    with pytest.raises(ConfigError, match="sum to 1"):
        Types(np.array([0.5]), np.array([0.5]), np.array([0.5]))
    with pytest.raises(ConfigError, match="two accuracies"):
        ceiling_line(np.array([0.5, 0.5]), np.array([0.1, 0.2]))


def accepted_of(rates: np.ndarray, seed: int, drift: float = 0.0) -> tuple[np.ndarray, ...]:
    """Draw 300 accepted answers of each task; `drift`: fall of the log odds over the attempts."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(len(rates)), 300)
    attempt = np.tile(np.arange(300), len(rates))
    odds = np.log(rates / (1 - rates))[task] - drift * attempt / 300
    return attempt, rng.random(len(task)) < 1 / (1 + np.exp(-odds)), task


def test_no_trend_is_seen_where_each_task_has_its_own_rate() -> None:
    """Standard normal over 60 draws, with tasks from hardly ever to nearly always right."""
    z = [trend(*accepted_of(np.linspace(0.02, 0.98, 12), seed)).z for seed in range(60)]
    assert abs(np.mean(z)) < 4 / np.sqrt(60)
    assert np.std(z) == pytest.approx(1, abs=0.3)
    assert max(map(abs, z)) < 4


def test_attempts_that_share_a_stream_show_a_trend() -> None:
    assert trend(*accepted_of(np.linspace(0.1, 0.9, 12), 1, drift=0.8)).z < -4


def test_late_hard_tasks_alone_make_no_trend() -> None:
    """Pooled, right answers get rarer with the attempt; within tasks they do not (Simpson)."""
    attempt, right, task = accepted_of(np.array([0.9, 0.1]), 2)
    attempt = attempt + 1000 * task  # the hard task is accepted late
    assert np.corrcoef(attempt, right)[0, 1] < -0.5
    assert abs(trend(attempt, right, task).z) < 4


def test_tasks_that_are_always_right_say_nothing() -> None:
    found = trend(np.arange(6), np.ones(6, bool), np.zeros(6, np.int64))
    assert found == (0.0, 0, 6)


def test_the_trend_is_that_of_all_orders() -> None:
    """Mean and variance against every order of three right ones among six, scores uneven."""
    from itertools import combinations

    score = np.array([0, 1, 3, 4, 9, 20])
    sums = [score[list(at)].sum() for at in combinations(range(6), 3)]
    right = np.array([True, False, True, False, False, True])
    expected = (score[right].sum() - np.mean(sums)) / np.std(sums)
    assert trend(score, right, np.zeros(6, np.int64)).z == pytest.approx(expected, abs=1e-12)
