"""Weaker and stronger tests of programs: what is taken from given ones, and what is added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capax.errors import ConfigError, SandboxError
from capax.scaling.extended_tests import (
    extended_tests,
    first_assertions,
    given_inputs,
    new_inputs,
    promise,
)
from capax.scaling.sandbox import check_isolation, run_tests

PROMPT = 'def total_of_even(numbers: list[int]) -> int:\n    """Sum the even ones."""\n'
RIGHT = PROMPT + "    return sum(n for n in numbers if n % 2 == 0)\n"
FIRST_ONLY = PROMPT + "    return numbers[0] if numbers[0] % 2 == 0 else 0\n"
TESTS = """
def check(candidate):
    assert True, "a constant says nothing"
    assert candidate([2, 3]) == 2
    assert candidate([5]) == 0
    assert candidate([4, 7, 9, 11]) == 4
    for n in range(3):
        assert candidate([n]) in (0, 2)
"""


def sandbox() -> None:
    try:
        check_isolation()
    except SandboxError as error:
        pytest.skip(str(error))


def test_constants_and_loops_are_no_first_assertions() -> None:
    weak = first_assertions(TESTS, 2)
    assert weak.count("assert") == 2
    assert "[2, 3]" in weak
    assert "[5]" in weak
    with pytest.raises(ConfigError, match="outside of a loop"):
        first_assertions("def check(candidate):\n  for n in (1, 2):\n    assert candidate(n)\n", 1)
    for tests in ("def other(candidate): pass", "def check(:"):
        with pytest.raises(ConfigError):
            first_assertions(tests, 1)


def test_inputs_are_the_literal_arguments() -> None:
    assert given_inputs(TESTS) == [([2, 3],), ([5],), ([4, 7, 9, 11],)]


def test_new_inputs_are_many_different_and_the_same_again() -> None:
    given = given_inputs(TESTS)
    made = new_inputs(given, 50, seed=1)
    assert len(made) == 50
    assert len({repr(x) for x in [*made, *given]}) == 53
    assert made == new_inputs(given, 50, seed=1) != new_inputs(given, 50, seed=2)


def test_new_inputs_keep_what_given_ones_promise() -> None:
    """Non-empty sorted lists of positive numbers stay that; without the rule they do not."""
    given = [([1, 4, 9], "ab"), ([2, 3], "ba")]
    for numbers, text in new_inputs(given, 60):
        assert numbers == sorted(numbers)
        assert 2 <= len(numbers) <= 6
        assert all(type(n) is int and n >= 1 for n in numbers)
        assert text
        assert set(text) <= {"a", "b"}
    wild = new_inputs(given, 60, keeps_promises=False)
    assert any(numbers != sorted(numbers) or not numbers for numbers, _ in wild)


def test_arguments_that_are_always_equally_long_stay_so() -> None:
    made = new_inputs([("01", "10", 2), ("110", "011", 3)], 20)
    assert len(made) == 20
    assert all(len(a) == len(b) for a, b, _ in made)


@pytest.mark.parametrize(
    ("given", "kept", "broken"),
    [
        ([1, 5], 7, 0), ([0, 5], 0, -1), ([-3, 5], -1, 900), ([1.5], 2.0, 2), (["ab"], "ba", "x"),
        (["ab"], "ab", "AB"), ([[1, 2]], [1, 3], [3, 1]), ([[1, 2]], [2, 4], [2, 2]),
        ([[1], []], [], ["a"]), ([(1, 2)], (2, 3), [2, 3]), ([True], False, 1),
    ],
)  # fmt: skip
def test_promises(given: list[object], kept: object, broken: object) -> None:
    rule = promise(given)
    assert rule(kept)
    assert not rule(broken)


def test_what_weak_tests_let_through_strong_ones_do_not() -> None:
    sandbox()
    weak = first_assertions(TESTS, 2)
    strong, n_inputs = extended_tests(TESTS, RIGHT, "total_of_even", n=40)
    assert n_inputs == 43

    def passes(program: str, tests: str) -> bool:
        return run_tests(program, tests, "total_of_even", preamble=PROMPT).passed

    assert passes(FIRST_ONLY, weak)
    assert not passes(FIRST_ONLY, strong)
    other = PROMPT + "    return 2 * sum(n // 2 for n in numbers if not n & 1)\n"
    assert passes(RIGHT, strong)
    assert passes(other, strong)


def test_an_oracle_that_is_not_sure_fails_the_tests_and_one_that_raises_is_skipped() -> None:
    sandbox()
    unsure = "import random\n" + PROMPT + "    return random.random()\n"
    tests, _ = extended_tests(TESTS, unsure, "total_of_even", n=2)
    found = run_tests(RIGHT, tests, "total_of_even", preamble=PROMPT)
    assert found.kind == "failed"
    assert "not sure" in found.detail
    raising = PROMPT + "    return sum(n for n in numbers if n % 2 == 0) // (len(numbers) > 1)\n"
    tests, _ = extended_tests(TESTS, raising, "total_of_even", n=0)
    program = PROMPT + "    return {2: 2, 4: 4}[len(numbers)]\n"  # has no answer to one number
    assert run_tests(program, tests, "total_of_even", preamble=PROMPT).passed


def test_humaneval_as_measured() -> None:
    """The committed figures: no unsure oracle, right programs pass, and most mutants are killed."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "extended_tests.json"
    found = json.loads(path.read_text())
    total = found["total"]
    assert found["n_tasks"] == total["canonical_passes_strong"] == 20
    assert total["solution_passes_strong"] == 20
    assert total["killed_strong"] >= 0.6 * total["mutants"]
    assert total["killed_weak"] < total["killed_strong"]
    assert found["all_tasks"] == {
        "n": 164, "without_literal_call": 3, "with_50_new_inputs": 153, "fewest_new_inputs": 25,
    }  # fmt: skip
