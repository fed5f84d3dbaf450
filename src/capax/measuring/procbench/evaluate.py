"""Ask an endpoint every problem, in order, and write each answer down as soon as it is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capax.decoding.params import SamplingParams
from capax.decoding.structured import StructuredOutputs
from capax.endpoints.endpoint import Endpoint, GenerateRequest
from capax.errors import ConfigError
from capax.measuring.procbench import answer_form
from capax.measuring.procbench.parsing import parse, parse_json
from capax.measuring.procbench.problem import Problem
from capax.measuring.procbench.record import Record, opened
from capax.measuring.procbench.scoring import score
from capax.measuring.procbench.stepwise import answer_stepwise
from capax.measuring.procbench.voting import voted

Mode = Literal["free", "json"]
Ask = Literal["instructions", "question"]
Vote = Literal["answers", "states"]
CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Settings:
    """How problems are asked. `json` mode lets the endpoint write nothing but the answer's form.

    `max_new_tokens`: of each answer; 512 holds every true answer of up to 6 steps. `ask`: the whole
    prompt as a chat, or the question alone as a text to continue, for models that learnt one task.
    One answer is greedy; of several `samples`, drawn at `temperature`, the states are voted: of
    whole answers, or each state before the next is drawn. Raises ConfigError for a vote on states
    of an answer in free form, or in a chat, where no answer can be continued.
    """

    mode: Mode = "free"
    max_new_tokens: int = 512
    ask: Ask = "instructions"
    samples: int = 1
    temperature: float = 0.7
    vote: Vote = "answers"

    def __post_init__(self) -> None:
        if self.vote == "states" and (self.mode, self.ask) != ("json", "question"):
            raise ConfigError(
                f"a vote on states needs mode json and the question alone, not mode {self.mode} "
                f"and {self.ask}: each state continues the answer as it stands"
            )

    def request(self, problem: Problem) -> GenerateRequest:
        """Return the request for a problem; its own digest seeds the draws."""
        is_json = self.mode == "json"
        form = StructuredOutputs(json=answer_form.schema(problem.task)) if is_json else None
        params = SamplingParams(
            n=self.samples,
            max_tokens=self.max_new_tokens,
            temperature=0.0 if self.samples == 1 else self.temperature,
            seed=int(problem.digest[:15], 16),
            structured_outputs=form,
        )
        if self.ask == "question":
            return GenerateRequest(question_prompt(problem), params, purpose="procbench")
        text = problem.prompt
        if is_json:
            text += f"\n\n{answer_form.request(problem.task)}"
        return GenerateRequest([{"role": "user", "content": text}], params, purpose="procbench")


async def evaluate(
    endpoint: Endpoint,
    problems: Sequence[Problem],
    settings: Settings,
    path: Path,
    *,
    has_header: bool = True,
    concurrency: int = 8,
    count_tokens: CountTokens | None = None,
    on_record: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Return the record of every problem, asking only those that `path` does not have yet.

    `has_header`: the file's first line says of what run it is; without it, somebody else must know.
    `on_record` is told how many are done, and of how many. Raises ConfigError if `path` is of
    another run, EndpointError and BudgetExceeded as the endpoint does; what was answered is kept.
    """
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency} but must be at least 1")
    header = {"model": endpoint.name, **run_settings(problems, settings)}
    with opened(path, header if has_header else None) as (file, records):
        under_way: deque[asyncio.Task[Record]] = deque()
        waiting = deque(problems[len(records) :])
        try:
            while waiting or under_way:
                while waiting and len(under_way) < concurrency:
                    problem = waiting.popleft()
                    under_way.append(
                        asyncio.create_task(_answer(endpoint, problem, settings, count_tokens))
                    )
                record = await under_way[0]
                under_way.popleft()
                file.append(record)
                records.append(record)
                if on_record:
                    on_record(len(records), len(problems))
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
    return records


async def _answer(
    endpoint: Endpoint, problem: Problem, settings: Settings, count_tokens: CountTokens | None
) -> Record:
    request = settings.request(problem)
    if settings.vote == "states":
        prompt = question_prompt(problem)
        completion = await answer_stepwise(endpoint, prompt, problem.task, request.params)
    else:
        completion = await endpoint.generate(request)
    read = parse_json if settings.mode == "json" else parse
    cut = [choice.finish_reason == "length" for choice in completion.choices]
    texts = [choice.text for choice in completion.choices]
    prediction = voted(
        [read(text, problem.task, is_cut) for text, is_cut in zip(texts, cut, strict=True)]
    )
    result = score(prediction, problem)
    return Record(
        task=problem.task.name,
        example=problem.example,
        steps=problem.steps,
        digest=problem.digest,
        text=texts[0],
        is_cut=all(cut),
        is_read=prediction is not None,
        intermediate=list(prediction.intermediate) if prediction else [],
        final=prediction.final if prediction else None,
        pml=result.pml,
        n_states=result.n_states,
        pa=result.pa,
        sm=result.sm,
        fm=result.fm,
        prompt_tokens=completion.usage.prompt_tokens,
        completion_tokens=completion.usage.completion_tokens,
        reference_tokens=count_tokens(reference(problem)) if count_tokens else None,
        further_texts=texts[1:],
    )


def question_prompt(problem: Problem) -> str:
    """Return what a specialist is asked: the question without its instructions."""
    return problem.question + "\n"


def reference(problem: Problem) -> str:
    """Return the true answer as compact JSON, the shortest form a reader needs."""
    answer = {"intermediate": problem.intermediate, "final": problem.final}
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def run_settings(problems: Sequence[Problem], settings: Settings) -> dict[str, Any]:
    """Return what decides a run's records, besides the model."""
    return {
        "mode": settings.mode,
        "max_new_tokens": settings.max_new_tokens,
        "ask": settings.ask,
        "problems": problems_digest(problems),
        **(
            {"samples": settings.samples, "temperature": settings.temperature}
            if settings.samples > 1
            else {}
        ),
        **({"vote": settings.vote} if settings.vote != "answers" else {}),
    }


def problems_digest(problems: Sequence[Problem]) -> str:
    """Return the SHA-256 of all prompts and truths, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        line = [problem.task.name, problem.example, problem.prompt, problem.init, *problem.states]
        digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
