"""The parser of free answers: what it must recover, drop and refuse."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capax.measuring.procbench import TASKS, Problem, generate
from capax.measuring.procbench.evaluate import reference
from capax.measuring.procbench.parsing import parse, parse_json
from capax.measuring.procbench.scoring import score
from tests.measuring.procbench.surface import STYLES


def hard_ones() -> list[Problem]:
    """An empty final string, and digit strings that begin with a zero."""
    empty = [p for p in generate(["PushPop"], [2], per_cell=40) if p.final == ""]
    zeros = [p for p in generate(["Decode"], [4], per_cell=9) if str(p.final).startswith("0")]
    return [empty[0], zeros[0]]


@pytest.mark.parametrize("style", STYLES)
def test_true_answers_are_recovered_in_every_style(style: str) -> None:
    for problem in [*generate(steps=[2, 5, 9], per_cell=1), *hard_ones()]:
        text = STYLES[style](problem)
        found = score(parse(text, problem.task), problem)
        assert found.sm, (problem.task.name, text, parse(text, problem.task))


@pytest.mark.parametrize("style", STYLES)
def test_wrong_answers_are_not_repaired(style: str) -> None:
    """The states in another order, one left out, one more: each is seen as it is."""
    for problem in generate(steps=[6], per_cell=1):
        a, b, *rest = problem.intermediate
        for states in ([b, a, *rest], [a, *rest], [a, b, *rest, a]):
            other = Problem(problem.task, "", "", "", problem.init, (*states, problem.final))
            truth = score(parse(STYLES[style](other), problem.task), problem)
            assert truth.n_states == len(states) + 1, (problem.task.name, style)
            assert truth.sm == ([*states, problem.final] == list(problem.states))


@pytest.mark.parametrize("name", TASKS)
def test_a_cut_answer_gives_the_whole_states_it_contains(name: str) -> None:
    (problem,) = generate([name], [4], per_cell=1)
    text = reference(problem)
    best = 0
    for end in range(len(text) + 1):
        found = parse(text[:end], problem.task, is_cut=end < len(text))
        result = score(found, problem)
        assert found is None or result.n_states == len(found.intermediate) + 1
        assert result.pml >= best, text[:end]
        assert list(found.intermediate if found else []) == problem.intermediate[: result.pml]
        best = result.pml
    assert best == problem.steps


def test_an_unfinished_line_is_dropped_only_where_the_answer_was_cut() -> None:
    text = "1. ab\n2. abc"
    sort = TASKS["Sort"]
    whole, cut = parse(text, sort), parse(text, sort, is_cut=True)
    assert whole is not None
    assert cut is not None
    assert (whole.intermediate, cut.intermediate) == (["ab", "abc"], ["ab"])


@pytest.mark.parametrize("text", ["", "I cannot do that.", "abc", "{}", "[1, 2]", "| a | b |"])
def test_nothing_to_read(text: str) -> None:
    assert parse(text, TASKS["Sort"]) is None


def test_the_last_answer_counts_and_thoughts_do_not() -> None:
    sort = TASKS["Sort"]
    text = (
        '<think>{"intermediate": ["q"], "final": "q"}</think>'
        '{"intermediate": ["x"], "final": "y"} or rather {"intermediate": ["a"], "final": "b"}'
    )
    found = parse(text, sort)
    assert found is not None
    assert found.states == ["a", "b"]
    assert parse('<think>{"intermediate": ["q"], "final": "q"}', sort) is None


def test_types_follow_the_task() -> None:
    as_numbers = parse("intermediate: [1, 07]\nfinal: 007", TASKS["Decode"])
    assert as_numbers is not None
    assert as_numbers.states == ["1", "07", "007"]
    as_int = parse("intermediate: [1, '7', 7.9]\nfinal: 12", TASKS["Cumulate"])
    assert as_int is not None
    assert as_int.states == [1, "7", "7.9", 12]


def test_json_mode_takes_only_the_form() -> None:
    sort = TASKS["Sort"]
    answer = parse_json('{"intermediate": ["a"], "final": "b"}', sort)
    assert answer is not None
    assert answer.states == ["a", "b"]
    for text in ("[]", '{"final": "b"}', '{"intermediate": "a", "final": "b"}', "1. a\nfinal: b"):
        assert parse_json(text, sort) is None
    cut = parse_json('{"intermediate": ["a", "b', sort, is_cut=True)
    assert cut is not None
    assert cut.states == ["a", None]
    assert parse_json("[" * 10_000, sort) is None


@given(text=st.text(alphabet="[](){}'\"`\\,:|-*.\n 01af intermediatefinalstep", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for name in ("Sort", "Cumulate", "Count", "Search"):
        for is_cut in (False, True):
            found = parse(text, TASKS[name], is_cut)
            if found is not None:
                json.dumps(found.states)


@pytest.mark.parametrize(
    "text",
    ["intermediate [" + "[" * 50_000, "intermediate " * 20_000, "- a\n" * 60_000,
     "final: " * 40_000, "|1|" * 80_000, "intermediate: [" + "'a'," * 60_000, "\\" * 200_000,
     "intermediate " + " " * 200_000, "step 1" * 40_000, "- " + " " * 200_000],
)  # fmt: skip
def test_hostile_lengths(text: str) -> None:
    parse(text, TASKS["Sort"])
    parse(text, TASKS["Search"], is_cut=True)
