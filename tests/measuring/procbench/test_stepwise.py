"""States that are agreed on one by one: what survives, what it costs, and where it stops."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from capax.endpoints.endpoint import Choice, Completion, GenerateRequest
from capax.engine.outputs import Usage
from capax.errors import ConfigError
from capax.measuring.procbench import TASKS, Problem, generate
from capax.measuring.procbench.evaluate import Settings, evaluate, question_prompt, reference
from capax.measuring.procbench.record import Record
from tests.scaling.scripted import Scripted

PROBLEMS = list(generate(steps=[3, 6], per_cell=1))  # of all 23 tasks


class Wandering(Scripted):
    """Draws as many next states as asked for; `n_wrong` of them break the chain for good.

    Asked for a whole answer, it breaks every chain but one at its own place. A character is a
    token.
    """

    def __init__(self, n_wrong: int) -> None:
        super().__init__()
        self._n_wrong = n_wrong
        self.calls: list[tuple[str, int | None]] = []
        self.longest = 0  # what was written when asked, and what might still have come
        self._problems = {question_prompt(p): p for p in PROBLEMS}

    async def count_prompt(self, prompt: object) -> int:
        return len(str(prompt))

    async def generate(self, request: GenerateRequest) -> Completion:
        params, prompt = request.params, str(request.prompt)
        question = next(q for q in self._problems if prompt.startswith(q))
        truth = reference(self._problems[question])
        done = prompt[len(question) :]
        assert truth.startswith(done), "what was agreed is wrong"
        self.calls.append((prompt, params.seed))
        self.longest = max(self.longest, len(done) + (params.max_tokens or 0))
        form = params.structured_outputs
        assert form is not None
        texts = [truth] * params.n
        if form.regex is not None:
            rest = truth[len(done) :]
            # the form holds for one state only, and the shortest beginning of it is that state
            ends = (i for i in range(1, len(rest) + 1) if re.fullmatch(form.regex, rest[:i]))
            right = rest[: next(ends)]
            wrong = [f"{right[:-1]}{'?' * i}{right[-1]}" for i in range(1, self._n_wrong + 1)]
            texts = [*wrong, *[right] * (params.n - len(wrong))]
        else:
            texts = [truth.replace("a", "?"), *[truth.replace("e", "!")] * (params.n - 1)]
        limit = params.max_tokens or 0
        choices = [
            Choice(i, text[:limit], "stop" if len(text) <= limit else "length")
            for i, text in enumerate(texts)
        ]
        used = sum(len(choice.text) for choice in choices)
        return Completion(tuple(choices), Usage(len(prompt), used, 1), 0.5, self.name)


def run(
    folder: Path, n_wrong: int = 2, limit: int = 10**5, n: int = 5, vote: str = "states"
) -> tuple[list[Record], Wandering]:
    client = Wandering(n_wrong)
    settings = Settings("json", limit, "question", n, vote=vote)  # type: ignore[arg-type]
    return asyncio.run(evaluate(client, PROBLEMS, settings, folder / "a.jsonl")), client


def test_a_stray_draw_at_every_state_breaks_no_chain_of_any_task(tmp_path: Path) -> None:
    records, client = run(tmp_path)
    assert all(record.sm for record in records)
    assert {record.task for record in records} == set(TASKS)
    assert all(json.loads(r.text) == json.loads(reference(p)) for r, p in pairs(records))
    assert len(client.calls) == sum(p.steps for p in PROBLEMS)
    seeds = [seed for _, seed in client.calls]
    assert len(set(seeds)) == len(seeds)  # draws of one state are not those of another


def test_agreement_is_no_oracle(tmp_path: Path) -> None:
    """Where most draws make the same mistake it is agreed on: the check inside the client fails."""

    class Mistaken(Wandering):
        async def generate(self, request: GenerateRequest) -> Completion:
            found = await super().generate(request)
            wrong = Choice(0, found.text, "stop")
            return Completion((wrong,) * request.params.n, found.usage, 0.5, self.name)

    settings = Settings("json", 10**5, "question", 5, vote="states")
    with pytest.raises(AssertionError, match="what was agreed is wrong"):
        asyncio.run(evaluate(Mistaken(2), PROBLEMS, settings, tmp_path / "a.jsonl"))


def test_every_draw_and_every_prompt_is_paid_for(tmp_path: Path) -> None:
    records, client = run(tmp_path, n_wrong=0)
    for record, problem in pairs(records):
        question = question_prompt(problem)
        prompts = [prompt for prompt, _ in client.calls if prompt.startswith(question)]
        given = len('{"intermediate":[') + len(',"final":')
        assert record.completion_tokens == 5 * (len(reference(problem)) - given)
        assert record.prompt_tokens == sum(map(len, prompts))


@pytest.mark.parametrize("limit", [1, 20, 60])  # a context may have room for no more than that
def test_all_draws_together_take_no_more_than_as_many_answers(tmp_path: Path, limit: int) -> None:
    records, client = run(tmp_path, limit=limit)
    assert all(r.completion_tokens <= 5 * limit for r in records)
    assert client.longest <= limit
    assert any(r.is_cut for r in records)
    for record, problem in pairs(records):
        assert record.is_cut == (not record.sm)
        states = [*record.intermediate, record.final][: record.pml]
        assert states == list(problem.states[: record.pml])
        assert record.pml >= len(record.intermediate)  # what was not finished is left out


def test_a_chat_or_a_free_answer_cannot_be_continued() -> None:
    for wrong in (("free", "question"), ("json", "instructions")):
        with pytest.raises(ConfigError, match="a vote on states needs"):
            Settings(wrong[0], 64, wrong[1], 4, vote="states")  # type: ignore[arg-type]


def test_it_does_not_go_on_with_votes_on_answers(tmp_path: Path) -> None:
    run(tmp_path, vote="answers")
    with pytest.raises(ConfigError, match="another vote"):
        run(tmp_path)


def pairs(records: list[Record]) -> list[tuple[Record, Problem]]:
    return list(zip(records, PROBLEMS, strict=True))
