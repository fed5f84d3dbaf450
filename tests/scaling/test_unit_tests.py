"""Programs and formulas as answers: what is read out of a sample, and how it is judged."""

import json
from pathlib import Path

import pytest

from capax.decoding.params import SamplingParams
from capax.errors import ConfigError, SandboxError
from capax.scaling import symbolic, unit_tests
from capax.scaling.checkers import checker_named
from capax.scaling.run_directory import RunDirectory
from capax.scaling.sampling import SamplePlan, load, sample, verify_again
from capax.scaling.tasks import Task, read_tasks
from tests.scaling.sandbox.test_hostile import needs_isolation
from tests.scaling.scripted import Scripted, sums

PROMPT = '''from typing import List

def scale(x):
    return 2 * x

def total(xs: List[int]) -> int:
    """ Add twice the numbers.
    """
'''
TEST = (
    "def check(candidate):\n    assert candidate([1, 2]) == scale(3)\n    assert total([]) == 0\n"
)
REFERENCE = unit_tests.reference_of(PROMPT, "total", TEST)
CHECKER = checker_named("unit_tests")


@needs_isolation
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("    return sum(map(scale, xs))\n", "passed"),
        ("    return sum(map(scale, xs))\n\nprint(total([1]))\nand so on", "passed"),
        ("So:\n```python\ndef total(xs):\n    return 2 * sum(xs)\n```\nDone.", "passed"),
        ("```\nx = 1\n```\n```py\ndef total(xs):\n    return scale(sum(xs))", "passed"),
        ("    return sum(xs)\n", "failed"),
        ("    return total(xs)\n", "error"),
        ("I cannot do this.", "error"),
        ("    pass\n", "failed"),
    ],
)
def test_samples_are_run(text: str, outcome: str) -> None:
    judged = CHECKER.judge(text, REFERENCE)
    assert judged.outcome == outcome
    assert judged.correct == (outcome == "passed")


def test_an_empty_sample_is_no_program() -> None:
    assert CHECKER.judge(" \n", REFERENCE) == (None, False, None)


def test_lines_of_humaneval_are_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    line = {"task_id": "T/0", "prompt": PROMPT, "entry_point": "total", "test": TEST}
    file.write_text(json.dumps(line | {"canonical_solution": "    return 2 * sum(xs)\n"}) + "\n")
    (task,) = read_tasks(file)
    assert (task.id, task.prompt, task.reference) == ("T/0", PROMPT, REFERENCE)
    assert task.checker is CHECKER
    for missing, message in (("test", "unit tests need"), ("prompt", "either 'prompt'")):
        file.write_text(json.dumps({k: v for k, v in line.items() if k != missing}) + "\n")
        with pytest.raises(ConfigError, match=message):
            read_tasks(file)
    file.write_text(json.dumps(line | {"entry_point": "no name"}) + "\n")
    with pytest.raises(ConfigError, match="no name of a function"):
        read_tasks(file)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{1} or \\boxed{\\dfrac{1}{2}}.", "\\frac{1}{2}"),
        ("The answer is $ x + 1 $.", "x+1"),
        ("answer: 12", "12"),
        ("we see $a$ and $b^2$", "b^2"),
        ("\\boxed{\\left(1, 2\\right)}", "(1,2)"),
        ("\\boxed{1", None),
        ("", None),
    ],
)
def test_formulas_are_found(text: str, answer: str | None) -> None:
    if answer is None:
        assert symbolic.extract_formula(text) in (None, "\\boxed{1")
    else:
        assert symbolic.extract_formula(text) == answer


@pytest.mark.parametrize("text", ["\\boxed{" * 10**5, "{" * 10**6, "$" * 10**6, "answer " * 10**5])
def test_long_texts_hold_no_formula_for_long(text: str) -> None:
    symbolic.extract_formula(text)  # the suite's timeout would end a quadratic search


def test_numbers_are_compared_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbolic, "_worker", lambda: pytest.fail("a worker was asked"))
    checker = checker_named("symbolic")
    assert checker.check("\\boxed{0.50}", "0.5")
    assert checker.check("\\boxed{1,234}", "1234")
    assert not checker.check("\\boxed{2}", "3")
    assert checker.check("\\boxed{x + 1}", "$x+1$")


@needs_isolation
@pytest.mark.slow  # SymPy alone takes a second to import
def test_formulas_are_compared_by_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    checker = checker_named("symbolic")
    for text, reference in (
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{x^2 + 2x + 1}", "(x+1)^2"),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}"),
    ):
        assert checker.check(text, reference), text
    assert not checker.check("\\boxed{x^2 + 2x + 2}", "(x+1)^2")
    assert checker.judge("\\boxed{9^{9^{9^{9}}}}", "4x").outcome == "timeout"
    assert checker.check("\\boxed{\\sqrt{8}}", "2\\sqrt{2}"), "a new worker answers"


@pytest.mark.anyio
async def test_stored_samples_are_checked_again(tmp_path: Path) -> None:
    path, tasks = tmp_path / "run", sums(3)
    plan = SamplePlan(4, SamplingParams(max_tokens=2))
    with RunDirectory(path, plan.settings(tasks, "m")) as run:
        await sample(Scripted(), tasks, run, plan)
    before = load(path).counts.correct.sum()
    assert verify_again(path, tasks) == 0
    exact = [Task(t.id, t.prompt, f"It is {t.reference}.", checker_named("exact")) for t in tasks]
    assert verify_again(path, exact) == 12
    assert load(path).counts.correct.sum() == before
    wrong = [Task(t.id, t.prompt, "never", checker_named("choice")) for t in tasks[:1]]
    with pytest.raises(ConfigError, match="holds nothing"):
        [task.checker.check_reference(task.reference) for task in wrong]
    with pytest.raises(ConfigError, match="samples of none"):
        verify_again(path, [Task("x", "1", "1", checker_named("exact"))])


@pytest.mark.anyio
async def test_nothing_is_sampled_that_could_not_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise SandboxError("no isolation")

    monkeypatch.setattr("capax.scaling.unit_tests.check_isolation", refuse)
    tasks = [Task("a", "1 +", REFERENCE, CHECKER)]
    plan = SamplePlan(4, SamplingParams(max_tokens=2))
    endpoint = Scripted()
    with (
        RunDirectory(tmp_path / "run", plan.settings(tasks, "m")) as run,
        pytest.raises(SandboxError, match="no isolation"),
    ):
        await sample(endpoint, tasks, run, plan)
    assert endpoint.n_calls == 0
