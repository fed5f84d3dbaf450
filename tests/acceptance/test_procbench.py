"""ProcBench's statements: solvers, clients with known scores, budget, resume, extraction."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capax.endpoints.endpoint import Choice, Completion, GenerateRequest
from capax.engine.outputs import Usage
from capax.errors import ConfigError, EndpointError
from capax.measuring.procbench import TASKS, Problem, generate, solve
from capax.measuring.procbench.evaluate import Settings, evaluate, reference
from capax.measuring.procbench.parsing import parse
from capax.measuring.procbench.public import load_public
from capax.measuring.procbench.record import Record, load, load_answers
from capax.measuring.procbench.report import markdown, summarize
from capax.measuring.procbench.scoring import Prediction, score
from capax.measuring.procbench.specialty import is_public
from tests.measuring.procbench.surface import STYLES
from tests.scaling.scripted import Scripted

PROBLEMS = list(generate(steps=[2, 3, 6, 11, 25], per_cell=2))


class Client(Scripted):
    """Answers with what `write` makes of a problem, one character per token."""

    name = "client"

    def __init__(self, write: Callable[[Problem], str], fails_after: int = 10**9) -> None:
        super().__init__()
        self._write = write
        self._problems = {p.prompt: p for p in PROBLEMS}
        self._left = fails_after
        self.n_asked = 0

    async def generate(self, request: GenerateRequest) -> Completion:
        self.n_asked += 1
        if self.n_asked > self._left:
            raise EndpointError("the client is gone")
        assert not isinstance(request.prompt, str)
        prompt = request.prompt[0]["content"].partition("\n\nAnswer with one JSON")[0]
        text = self._write(self._problems[prompt])
        limit = request.params.max_tokens or len(text)
        await asyncio.sleep(0)
        reason = "length" if len(text) > limit else "stop"
        usage = Usage(len(prompt), min(len(text), limit))
        return Completion((Choice(0, text[:limit], reason),), usage, 0.0, self.name)


def run(client: Client, path: Path, settings: Settings | None = None) -> list[Record]:
    settings = settings or Settings("free", 100_000)
    return asyncio.run(evaluate(client, PROBLEMS, settings, path, count_tokens=len))


def final_only(problem: Problem) -> str:
    return json.dumps({"intermediate": [], "final": problem.final})


def init_always(problem: Problem) -> str:
    init = problem.init
    return json.dumps({"intermediate": [init] * (problem.steps - 1), "final": init})


@pytest.mark.parametrize("mode", ["free", "json"])
def test_the_oracle_scores_one_everywhere(tmp_path: Path, mode: str) -> None:
    report = summarize(run(Client(reference), tmp_path / "a", Settings(mode, 10**5)), 10**5)
    for row in (report.overall, *report.by_steps, *report.by_class, *report.by_task):
        assert (row.pa, row.sm, row.fm, row.read, row.cut) == (1.0, 1.0, 1.0, 1.0, 0.0)
    tokens = sum(len(reference(p)) for p in PROBLEMS)
    assert report.overall.pa_per_1000_tokens == pytest.approx(1000 * len(PROBLEMS) / tokens)
    assert report.hazard is not None
    assert report.hazard.hazard == 0
    assert len(report.by_task) == len(TASKS) == 23
    assert "| PushPop | 10 | 100.0" in markdown(report)


def test_a_client_of_final_states_scores_what_the_labels_say(tmp_path: Path) -> None:
    records = run(Client(final_only), tmp_path / "a")
    shared = [p.states[0] == p.final for p in PROBLEMS]
    assert all(r.fm for r in records)
    assert [r.pml for r in records] == [int(s) for s in shared]
    assert sum(r.pa for r in records) == pytest.approx(
        sum(s / p.steps for s, p in zip(shared, PROBLEMS, strict=True))
    )
    assert not any(r.sm for r in records)


def test_a_client_of_initial_states_scores_what_the_labels_say(tmp_path: Path) -> None:
    records = run(Client(init_always), tmp_path / "a")
    for record, problem in zip(records, PROBLEMS, strict=True):
        expected = 0
        while expected < problem.steps and problem.states[expected] == problem.init:
            expected += 1
        assert record.pml == expected
    assert any(r.pml for r in records)
    assert sum(r.pml == 0 for r in records) > 0.9 * len(records)


def test_no_answer_exceeds_the_budget_and_cutting_grows_with_steps(tmp_path: Path) -> None:
    shares = []
    for limit in (64, 512):
        records = run(Client(reference), tmp_path / str(limit), Settings("free", limit))
        assert all(r.completion_tokens <= limit for r in records)
        assert [r.is_cut for r in records] == [len(reference(p)) > limit for p in PROBLEMS]
        report = summarize(records, limit)
        cut = [row.cut for row in report.by_steps]
        assert cut == sorted(cut)
        assert report.unavoidable == report.overall.cut > 0
        shares.append(report.overall.pa)
    assert 0 < shares[0] < shares[1] < 1


def test_two_runs_are_identical_and_a_resumed_one_too(tmp_path: Path) -> None:
    whole, other, broken = (tmp_path / name for name in ("whole", "other", "broken"))
    records = run(Client(reference), whole)
    run(Client(reference), other)
    assert whole.read_bytes() == other.read_bytes()
    with pytest.raises(EndpointError, match="gone"):
        run(Client(reference, fails_after=100), broken)
    n_kept = len(load(broken)[1])
    assert 0 < n_kept <= 100
    with broken.open("ab") as stream:  # the power failed in the middle of a line
        stream.write(b'{"task": "So')
    rest = Client(reference)
    assert run(rest, broken) == records
    assert rest.n_asked == len(PROBLEMS) - n_kept
    assert broken.read_bytes() == whole.read_bytes()


def test_a_file_without_a_header_is_resumed_to_the_same_lines(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(Client(reference), whole)
    lines = whole.read_bytes().splitlines(keepends=True)[1:]
    broken.write_bytes(b"".join(lines[:7]) + lines[7][:30])
    client = Client(reference)
    settings = Settings("free", 100_000)
    asyncio.run(
        evaluate(client, PROBLEMS, settings, broken, has_header=False, count_tokens=len)
    )  # fmt: skip
    assert client.n_asked == len(PROBLEMS) - 7
    assert broken.read_bytes() == b"".join(lines)
    broken.write_bytes(b"my novel\n")
    with pytest.raises(ConfigError, match="damaged"):
        load_answers(broken)


def test_a_file_of_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    run(Client(reference), path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="another max_new_tokens, mode"):
        run(Client(reference), path, Settings("json", 7))
    assert path.read_bytes() == before
    path.write_text("my novel\nchapter one\n")
    with pytest.raises(ConfigError, match="damaged"):
        run(Client(reference), path)
    assert path.read_text() == "my novel\nchapter one\n"


def test_the_parser_recovers_reference_answers() -> None:
    """At least 98 % of 500: here all tasks in all styles, with the states that are hard to read."""
    problems = [*generate(steps=[4, 8], per_cell=1)]
    problems += [p for p in generate(["PushPop"], [2], per_cell=60) if p.final == ""][:2]
    problems += [p for p in generate(["Decode"], [5], per_cell=9) if str(p.final)[0] == "0"][:2]
    right = [score(parse(write(p), p.task), p).sm for p in problems for write in STYLES.values()]
    assert len(right) == 500
    assert sum(right) >= 0.98 * len(right)


def test_states_in_another_order_are_not_accepted() -> None:
    for problem in PROBLEMS:
        backwards = problem.states[::-1]
        found = score(Prediction(backwards[:-1], backwards[-1]), problem)
        assert (found.pml >= 1) == (backwards[0] == problem.states[0])


def test_lines_of_the_published_forms_are_loaded(tmp_path: Path) -> None:
    problem = next(p for p in PROBLEMS if p.task.name == "Count")
    label = {"init": problem.init, "intermediate": problem.intermediate, "final": problem.final}
    common = {"task_name": "Count", "example_name": "0007"}
    lines = [
        {**common, "prompt": problem.prompt, "label": label},
        {**common, "prompt": problem.prompt, "label": json.dumps(label)},
        {**common, "task_name": "task03", "question": problem.question, **label},
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load_public(path)
    assert [p.states for p in found] == [problem.states] * 3
    assert {p.prompt for p in found} == {problem.prompt}
    assert found[0].example == "0007"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 1"), ("[]", "not an object"), ('{"task_name": "Juggle"}', "Juggle"),
        ('{"task_name": "Sort", "question": "", "init": "", "final": ""}', "intermediate"),
        ('{"task_name": "Sort", "question": "", "init": "", "intermediate": [], "final": ""}',
         "1 states"),
        ('{"task_name": "Sort", "question": "", "init": "", "intermediate": [7], "final": ""}',
         "state 1"),
        ('{"task_name": "Sort", "prompt": "x", "label": '
         '{"init": "", "intermediate": ["a"], "final": ""}}', "Question"),
    ],
)  # fmt: skip
def test_other_lines_are_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=words):
        load_public(path)


@pytest.mark.skipif(
    "CAPAX_PROCBENCH_DATA" not in os.environ, reason="CAPAX_PROCBENCH_DATA names no directory"
)
def test_all_problems_of_the_public_generators_are_solved() -> None:
    """1,656 solved problems: every state, and what the two simple clients score on them."""
    directory = Path(os.environ["CAPAX_PROCBENCH_DATA"])
    problems = load_public(directory / "examples_3_per_step.jsonl", directory / "templates")
    assert len(problems) == 1656
    for problem in problems:
        assert solve(problem.task.name, problem.question) == list(problem.states)
    assert all(map(is_public, problems))
    pml = [score(Prediction([p.init] * (p.steps - 1), p.init), p).pml for p in problems]
    assert [pml.count(n) for n in range(6)] == [1605, 39, 7, 3, 0, 2]
    assert sum(score(Prediction([], p.final), p).pml for p in problems) == 8
