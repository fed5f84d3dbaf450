"""The one spelling of methods, on methods made up for the purpose."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax import methods
from capax.errors import ConfigError
from capax.methods import Method, option_type_name, parse_method, register, registered


@dataclass(frozen=True)
class Options:
    """One option of each type."""

    bits: int
    ratio: float = 0.5
    exact: bool = False
    type: Literal["f16", "int8"] = "f16"
    window: int | None = None
    draft: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bits is {self.bits}; 1 to 8 are possible")


@pytest.fixture(autouse=True)
def trial() -> Iterator[Method]:
    """A method that is registered for one test."""
    method = Method("trial", "kv", "nobody", "Only tried.", Options)
    register(method)
    yield method
    del methods._registry["kv", "trial"]


def test_options_take_their_types() -> None:
    chosen = parse_method("kv", "trial:bits=4, ratio=0.25,exact=yes,type=int8,window=64,draft=a=b")
    assert chosen.options == Options(4, 0.25, True, "int8", 64, "a=b")


def test_options_that_are_not_given_keep_their_defaults() -> None:
    assert parse_method("kv", "trial:bits=2,window=none").options == Options(2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("trail:bits=1", "kv method 'trail' is unknown; known are .*full.*trial"),
        ("trial", r"needs bits=\.\.\.; write trial:bits="),
        ("trial:bits=four", "trial:bits is 'four'; a whole number is needed"),
        ("trial:bits=1,ratio=x", "trial:ratio is 'x'; a number is needed"),
        ("trial:bits=1,exact=maybe", "use true or false"),
        ("trial:bits=1,type=f8", "trial:type is 'f8'; use one of f16, int8"),
        ("trial:bits=1,bits=2", "'bits' of 'trial' is given twice"),
        ("trial:bits", "'bits' of 'trial' has no value"),
        ("trial:bots=1", "has no option 'bots'; it has bits, ratio"),
        ("trial:bits=9", "bits is 9; 1 to 8 are possible"),
        ("full:" + "x" * 2000, "at most 1,024"),
        ("", "kv method '' is unknown"),
    ],
)
def test_what_is_wrong_is_named(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_method("kv", spec)


@given(
    st.integers(1, 8),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.sampled_from(["f16", "int8"]),
    st.none() | st.integers(),
)
def test_a_choice_prints_as_it_is_read(
    bits: int, ratio: float, exact: bool, kind: Literal["f16", "int8"], window: int | None
) -> None:
    options = Options(bits, ratio, exact, kind, window)
    chosen = methods.Chosen(methods._registry["kv", "trial"], options)
    assert parse_method("kv", str(chosen)) == chosen


def test_one_name_is_one_method(trial: Method) -> None:
    assert register(trial) is trial
    with pytest.raises(ValueError, match="two kv methods are called 'trial'"):
        register(Method("trial", "kv", "", "Another one."))


def test_every_room_has_registered_its_methods() -> None:
    names = {(m.kind, m.name) for m in registered()}
    assert {
        ("kv", "full"),
        ("weights", "packed"),
        ("weights", "streamed"),
        ("decoding", "autoregressive"),
    } <= names
    assert {m.kind for m in registered("weights")} == {"weights"}


@pytest.mark.parametrize(
    ("hint", "name"), [(int, "int"), (Literal["a", "b"], "a|b"), (float | None, "float|none")]
)
def test_types_are_listed_as_people_read_them(hint: object, name: str) -> None:
    assert option_type_name(hint) == name
