"""Checkers and task files, right and hostile."""

from pathlib import Path

import pytest

from capax.errors import ConfigError
from capax.scaling.checkers import CHECKERS, checker_named
from capax.scaling.tasks import digest, read_tasks


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 3 + 4 = 7 apples.\n#### 7", "7"),
        ("#### $1,234.50 and then 9", "1234.5"),
        ("#### -12.", "-12"),
        ("The total is 1,000.", "1000"),
        ("first 3, then 4.0", "4"),
        ("it costs $.50", "0.5"),
        ("-0.0", "0"),
        ("100", "100"),
        ("no number", None),
        ("####", None),
        ("#### ..", None),
        ("1" * 101, None),
        ("", None),
    ],
)
def test_numbers(text: str, answer: str | None) -> None:
    assert CHECKERS["numeric"].extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("answer: c", "C"),
        ("I think (A) no, (D)", "D"),
        ("C", "C"),
        ("B. because it is", "B"),
        ("I would say that a cat", None),
        ("It must be C then", "C"),
        ("", None),
    ],
)
def test_letters(text: str, answer: str | None) -> None:
    assert CHECKERS["choice"].extract(text) == answer


def test_exact_ignores_white_space_around() -> None:
    assert checker_named("exact").check(" a b\n", "a b")
    assert not checker_named("exact").check("a  b", "a b")
    assert not checker_named("exact").check(" ", "a")


@pytest.mark.parametrize("name", CHECKERS)
def test_long_texts_take_no_time(name: str) -> None:
    for text in ("1," * 500_000, "-$" * 500_000, "(" * 1_000_000, "#### " * 200_000):
        CHECKERS[name].extract(text)  # the suite's timeout would end a quadratic search


def test_tasks_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(
        '{"id": 1, "prompt": "2 + 2 =", "reference": 4, "checker": "numeric", "extra": true}\n\n'
        '{"id": "b", "messages": [{"role": "user", "content": "hi"}], "reference": "hello"}\n'
    )
    one, two = read_tasks(file, checker="exact")
    assert (one.id, one.prompt, one.reference, one.checker.name) == ("1", "2 + 2 =", "4", "numeric")
    assert two.prompt == [{"role": "user", "content": "hi"}]
    assert two.checker.name == "exact"
    assert read_tasks(file, "exact", limit=1) == [one]
    assert digest([one]) != digest([two])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no task"),
        ("[]", "line 1 is no task"),
        ('{"id": "a", "prompt": "x"}', "reference"),
        ('{"id": "a", "prompt": "x", "reference": "1"}', "names no checker"),
        ('{"id": "a", "prompt": "x", "reference": "1", "checker": "sum"}', "no checker 'sum'"),
        ('{"id": "a", "reference": "1", "checker": "exact"}', "either 'prompt' or 'messages'"),
        ('{"id": "a", "messages": [], "reference": "1", "checker": "exact"}', "either"),
        ('{"id": "a", "prompt": "", "reference": "1", "checker": "exact"}', "prompt is empty"),
        ('{"id": "a", "prompt": "x", "reference": "none", "checker": "numeric"}', "holds nothing"),
        ('{"id": "a", "prompt": "\\ud800", "reference": "1", "checker": "exact"}', "no task"),
        ("[" * 100_000, "line 1 is no task"),
    ],
)
def test_lines_that_are_no_task(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_tasks(file)


def test_an_id_comes_once(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"id": "a", "prompt": "x", "reference": "1", "checker": "exact"}\n' * 2)
    with pytest.raises(ConfigError, match="line 2: the id 'a' comes twice"):
        read_tasks(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tasks(tmp_path / "missing.jsonl")
