"""Sampling parameters: every field has a closed range, and nonsense is named."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.decoding import SamplingParams
from capax.decoding.params import LIMITS, MAX_STOPS
from capax.errors import ConfigError

ABSURD = [
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    1e309,
    5e-324,
    2**63,
    2**64,
    -(2**63) - 1,
    10**400,
    True,
    "1",
    b"1",
    1j,
    [1],
    np.float32(math.nan),
    np.int64(-5),
]
numbers = st.one_of(
    st.sampled_from(ABSURD),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=3),
    st.booleans(),
    st.none(),
)


def is_legal(name: str, value: Any) -> bool:
    """The rule of a numeric field, written down a second time."""
    limits = LIMITS[name]
    if value is None:
        return limits.may_be_none
    if isinstance(value, bool):
        return False
    if isinstance(value, int | np.integer):
        return bool(limits.low <= value <= limits.high)
    if isinstance(value, float | np.floating) and not limits.is_integer:
        return math.isfinite(value) and limits.low <= value <= limits.high
    return False


@pytest.mark.parametrize("name", LIMITS)
@given(value=numbers)
def test_a_number_is_kept_or_refused_by_name(name: str, value: Any) -> None:
    if not is_legal(name, value):
        with pytest.raises(ConfigError, match=rf"^{name} is .* but must be .* from .* to "):
            SamplingParams(**{name: value})
        return
    others = {"max_tokens": None} if name == "min_tokens" else {}
    got = getattr(SamplingParams(**{name: value}, **others), name)
    expected = max(value, 0) if name == "top_k" else value
    assert got == expected
    assert type(got) in (int, float, type(None))
    assert not isinstance(got, float) or math.copysign(1, got) > 0 or got != 0


@pytest.mark.parametrize("name", LIMITS)
def test_both_ends_of_a_range_belong_to_it(name: str) -> None:
    limits = LIMITS[name]
    for value in (limits.low, limits.high):
        SamplingParams(**{name: int(value) if limits.is_integer else value})
    beyond = int(limits.high) + 1 if limits.is_integer else math.nextafter(limits.high, math.inf)
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: beyond})


def test_defaults_are_the_plain_distribution() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert (params.repetition_penalty, params.presence_penalty) == (1.0, 0.0)
    assert params.max_tokens is None
    assert params.seed is None


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stop", "", "1 to 256 characters"),
        ("stop", ["x" * 257], "1 to 256 characters"),
        ("stop", [3], "contains 3"),
        ("stop", 5, "must be a list"),
        ("stop", {"a": 1}, "must be a list"),
        ("stop", ["x"] * (MAX_STOPS + 1), "17 strings but at most 16"),
        ("stop_token_ids", [-1], "is -1 but must be an integer from 0"),
        ("stop_token_ids", [True], "is True"),
        ("stop_token_ids", ["7"], "is '7'"),
        ("stop_token_ids", list(range(2000)), "at most 1024"),
        ("stop_token_ids", 7, "must be a list"),
        ("logit_bias", {5: 101}, "logit_bias of token 5 is 101 but must be .* -100 to 100"),
        ("logit_bias", {5: math.nan}, "logit_bias of token 5 is nan"),
        ("logit_bias", {-1: 0}, "token of logit_bias is -1"),
        ("logit_bias", {"5": 0}, "token of logit_bias is '5'"),
        ("logit_bias", [5], "must map token ids"),
        ("logit_bias", dict.fromkeys(range(5000), 0), "at most 4096"),
        ("ignore_eos", 1, "true or false"),
        ("skip_special_tokens", "no", "true or false"),
        ("temperature", "x" * 5000, r"temperature is 'x{80}'\.\.\. but"),
        ("n", 10**1000, "an integer of 3322 bits"),
    ],
)
def test_wrong_values_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SamplingParams(**{field: value})
    assert len(str(caught.value)) < 300


def test_min_tokens_must_fit_into_max_tokens() -> None:
    with pytest.raises(ConfigError, match="min_tokens is 5 but max_tokens is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_with_seed_keeps_everything_else() -> None:
    params = SamplingParams(temperature=0.5, logit_bias={3: 1.0}, stop=("a",))
    seeded = params.with_seed(-7)
    assert seeded.seed == -7
    assert (seeded.temperature, seeded.logit_bias, seeded.stop) == (0.5, {3: 1.0}, ("a",))
    assert params.seed is None


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_tokens_outside_the_vocabulary_are_named(field: str) -> None:
    value: Any = {100: 1.0} if field == "logit_bias" else [100]
    params = SamplingParams(**{field: value})
    params.check_vocabulary(101)
    with pytest.raises(ConfigError, match=f"{field} names token 100 but .* 100 tokens, 0 to 99"):
        params.check_vocabulary(100)
