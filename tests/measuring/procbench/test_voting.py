"""Votes over the states of several answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from capax.endpoints.endpoint import Choice, Completion, GenerateRequest
from capax.engine.outputs import Usage
from capax.errors import ConfigError
from capax.measuring.procbench import generate
from capax.measuring.procbench.evaluate import Settings, evaluate
from capax.measuring.procbench.record import Record, lm_eval_rows
from capax.measuring.procbench.scoring import Prediction
from capax.measuring.procbench.voting import voted
from tests.scaling.scripted import Scripted

PROBLEMS = list(generate(steps=[3, 5], per_cell=1))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(["a"], "b")], (["a"], "b")),
        ([(["a"], "b"), (["a"], "c"), (["d"], "c")], (["a"], "c")),
        ([(["a"], "b"), None, None], (["a"], "b")),
        ([(["a"], "b"), (["c"], "d")], (["a"], "b")),  # the first of equals
        ([([["x"]], 1), ([["y"]], 2), ([["y"]], 2)], ([["y"]], 2)),  # states may be lists
        ([([], "z"), (["a"], "b"), (["c"], "b")], (["a"], "b")),
        ([(["a", "q"], "z"), (["c"], "b"), (["a"], "b")], (["a"], "b")),  # longer ones vote too
        ([([1], "1"), (["1"], 1), (["1"], "1")], (["1"], "1")),  # 1 is not "1"
    ],
)
def test_states_are_voted_by_place(
    answers: list[tuple[list[object], object] | None], expected: tuple[list[object], object]
) -> None:
    found = voted([None if a is None else Prediction(*a) for a in answers])
    assert found is not None
    assert (list(found.intermediate), found.final) == expected


def test_nothing_read_is_no_answer() -> None:
    assert voted([None, None]) is None


class Stumbling(Scripted):
    """Of n answers each has another state wrong: together they know every state."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int | None] = []
        self._problems = {p.prompt: p for p in PROBLEMS}

    async def generate(self, request: GenerateRequest) -> Completion:
        assert not isinstance(request.prompt, str)
        problem = self._problems[request.prompt[0]["content"]]
        self.seeds.append(request.params.seed)
        assert (request.params.temperature == 0.0) == (request.params.n == 1)
        choices = []
        for i in range(request.params.n):
            states = list(problem.states)
            at = i % len(states)
            states[at] = states[at - 1] if states[at] != states[at - 1] else type(states[at])()
            text = json.dumps({"intermediate": states[:-1], "final": states[-1]})
            choices.append(Choice(i, text, "length" if i == 0 else "stop"))
        return Completion(tuple(choices), Usage(5, 7 * len(choices)), 0.0, self.name)


def run(path: Path, settings: Settings) -> tuple[list[Record], list[int | None]]:
    client = Stumbling()
    return asyncio.run(evaluate(client, PROBLEMS, settings, path)), client.seeds


def test_answers_that_err_in_different_places_are_right_together(tmp_path: Path) -> None:
    alone, _ = run(tmp_path / "one.jsonl", Settings("free", 10**5))
    together, seeds = run(tmp_path / "many.jsonl", Settings("free", 10**5, samples=9))
    assert not any(record.sm for record in alone)
    assert all(record.sm for record in together)
    assert all(r.completion_tokens == 63 and not r.is_cut for r in together)
    assert all(len(r.further_texts) == 8 for r in together)
    assert len(set(seeds)) == len(PROBLEMS)  # by problem, the same each time
    assert seeds == run(tmp_path / "again.jsonl", Settings("free", 10**5, samples=9))[1]
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert len(lm_eval_rows(together)[0]["resps"][0]) == 9


def test_a_vote_does_not_go_on_with_the_answers_of_a_greedy_run(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(path, Settings("free", 10**5))
    assert "further_texts" not in path.read_text()
    with pytest.raises(ConfigError, match="samples"):
        run(path, Settings("free", 10**5, samples=3))
