"""The metrics: the published cases, strict types, and relations that hold for any answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.measuring.procbench import TASKS, generate
from capax.measuring.procbench.scoring import (
    Prediction,
    equal,
    published_equal,
    score,
    score_states,
)

SORT = TASKS["Sort"]


@pytest.mark.parametrize(
    ("predicted", "pml", "pa", "sm", "fm"),
    [
        ("abc", 3, 1.0, True, True),
        ("abcc", 3, 0.75, False, True),
        ("axc", 1, 1 / 3, False, True),
        ("", 0, 0.0, False, False),
        ("c", 0, 0.0, False, True),
        ("ab", 2, 2 / 3, False, False),
        ("cba", 0, 0.0, False, False),
    ],
)
def test_published_cases(predicted: str, pml: int, pa: float, sm: bool, fm: bool) -> None:
    result = score_states(list(predicted), list("abc"), SORT)
    assert (result.pml, result.pa, result.sm, result.fm) == (pml, pytest.approx(pa), sm, fm)
    assert result.n_states == len(predicted)


@pytest.mark.parametrize(
    ("value", "is_equal", "is_published"),
    [
        (7, True, True), ("7", True, True), ("7.0", False, False), (7.9, False, True),
        (True, False, False), (None, False, False), ("-7", False, False), ([7], False, False),
        (float("inf"), False, False), (" 7", False, True), ("\u0667", False, True),
        ("9" * 5000, False, False),
    ],
)  # fmt: skip
def test_integers(value: Any, is_equal: bool, is_published: bool) -> None:
    assert equal(value, 7, "int") is is_equal
    assert published_equal(value, 7, "int") is is_published


def test_integers_beyond_the_exact_floats() -> None:
    most = 9 * 5**25
    assert equal(str(most), most, "int")
    assert equal(most, most, "int")
    assert not equal(most + 1, most, "int")
    assert not equal(float(most), most, "int")


@pytest.mark.parametrize(
    ("value", "truth", "is_equal", "is_published"),
    [
        (["a", "b"], ["a", "b"], True, True),
        ("ab", ["a", "b"], False, True),
        (["b", "a"], ["a", "b"], False, False),
        (["a"], ["a", "b"], False, False),
        (["a", None], ["a", "None"], False, True),
        ([7, "b"], ["7", "b"], True, True),
        ([], [], True, False),
        (None, ["a"], False, False),
        ([["a"], "b"], ["a", "b"], False, False),
    ],
)
def test_lists(value: Any, truth: list[str], is_equal: bool, is_published: bool) -> None:
    assert equal(value, truth, "strs") is is_equal
    assert published_equal(value, truth, "strs") is is_published


def test_strings_never_pass_through_a_number_parser() -> None:
    assert equal("007", "007", "str")
    assert not equal("7", "007", "str")
    assert not equal(7, "7", "str")


def test_an_unread_answer_does_not_match_an_empty_string() -> None:
    empty = next(p for p in generate(["PushPop"], [2], per_cell=60) if p.final == "")
    assert score(None, empty).fm is False
    assert score(None, empty).n_states == 0
    assert score(None, empty, "published").fm is True
    assert score(Prediction([], ""), empty).fm is True
    assert score(Prediction(empty.intermediate), empty).fm is False


def test_count_is_scored_with_rows_and_a_final_number() -> None:
    (problem,) = generate(["Count"], [4], per_cell=1)
    assert score(Prediction(problem.intermediate, str(problem.final)), problem).sm
    rows = [[row[0], *map(int, row[1:])] for row in problem.intermediate]
    assert score(Prediction(rows, problem.final), problem).sm
    floats = [[row[0], *map(float, row[1:])] for row in problem.intermediate]
    assert score(Prediction(floats, problem.final), problem).pml == 0


STATES = st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=6)


@given(predicted=STATES, truth=STATES.filter(bool))
def test_relations(predicted: list[str], truth: list[str]) -> None:
    result = score_states(predicted, truth, SORT)
    assert 0 <= result.sm <= result.pa <= 1
    assert result.sm <= result.fm
    assert result.pml <= min(len(predicted), len(truth))
    assert result.sm == (predicted == truth)
    more = score_states([*predicted, "x"], truth, SORT)
    assert more.pa <= result.pa or more.pml > result.pml


@pytest.mark.parametrize("name", TASKS)
def test_the_truth_scores_one_and_reversed_states_only_what_they_share(name: str) -> None:
    for problem in generate([name], range(2, 12), per_cell=2):
        truth = score(Prediction(problem.intermediate, problem.final), problem)
        assert (truth.pml, truth.pa, truth.sm, truth.fm) == (problem.steps, 1.0, True, True)
        backwards = [*reversed(problem.states)]
        found = score(Prediction(backwards[:-1], backwards[-1]), problem)
        shared = 0
        while shared < problem.steps and backwards[shared] == problem.states[shared]:
            shared += 1
        assert found.pml == shared
