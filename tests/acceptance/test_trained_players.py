"""The players trained here on tours and formulas: bounds, difficulty, hints (8, 9, 10).

The long runs with 256 samples are `benchmarks.players`; these are their fast parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.players import MuteCritic
from capax import LLM, SamplingParams
from capax.endpoints import GenerateRequest, Message
from capax.endpoints.local import LocalEndpoint
from capax.scaling.complex import Instance, family_named
from capax.scaling.complex.critic import Critic, OracleCritic, Rounds, sequential, solved_within
from capax.scaling.complex.players import PLAYERS
from capax.scaling.complex.players.held_out import held_out, is_held_out
from capax.scaling.complex.sequential_run import without_repeats
from capax.scaling.complex.study import Played, best_of, blind_best_of, report

MODELS = Path(__file__).parents[2] / "models" / "players"
PARAMS = SamplingParams(max_tokens=300, temperature=1.0, seed=1)


class Player(NamedTuple):
    """A model with what it answered to some tasks."""

    llm: LLM
    played: list[Played]


def play(llm: LLM, instances: list[Instance], n: int) -> list[Played]:
    async def one(endpoint: LocalEndpoint, instance: Instance) -> Played:
        said: list[Message] = [{"role": "user", "content": instance.prompt}]
        params = SamplingParams(max_tokens=300, temperature=1.0, seed=1, n=n)
        done = await endpoint.generate(GenerateRequest(said, params, "answer"))
        family = family_named(instance.family)
        answers = [family.extract(choice.text) for choice in done.choices]
        right = [a is not None and family.is_right(instance.truth, a) for a in answers]
        tokens = [choice.n_tokens for choice in done.choices]
        return Played(instance, answers, np.array(right), np.array(tokens, float))

    async def run() -> list[Played]:
        async with LocalEndpoint(llm) as endpoint:
            return list(await asyncio.gather(*(one(endpoint, i) for i in instances)))

    return asyncio.run(run())


def rounds_of(llm: LLM, instances: list[Instance], critic: Critic, n: int) -> list[Rounds]:
    async def run() -> list[Rounds]:
        async with LocalEndpoint(llm) as endpoint:
            runs = (sequential(endpoint, i, critic, PARAMS, rounds=n) for i in instances)
            return list(await asyncio.gather(*runs))

    return asyncio.run(run())


def opened(name: str) -> LLM:
    return LLM(MODELS / f"{name}.gguf", threads=1, n_sequences=32, parallel=64)


@pytest.fixture(scope="module")
def tourist() -> Iterator[Player]:
    tasks = [i for level in (4, 5, 6, 7) for i in held_out(family_named("tsp"), level, 16)]
    with opened("tsp-search") as llm:
        yield Player(llm, play(llm, tasks, 8))


@pytest.mark.parametrize("name", PLAYERS)
def test_the_file_is_what_its_record_says(name: str) -> None:
    record = json.loads((MODELS / f"{name}.json").read_text())
    content = (MODELS / f"{name}.gguf").read_bytes()
    assert record["sha256"][f"{name}.gguf"] == hashlib.sha256(content).hexdigest()
    assert record["recipe"]["task"] == name
    assert record["n_parameters"] < 1.5e6
    steps = [json.loads(line) for line in (MODELS / f"{name}.log.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == record["recipe"]["steps"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    with LLM(MODELS / f"{name}.gguf", threads=1) as llm:
        assert llm.config.vocab_size == len(PLAYERS[name].tokens) + 1
        assert llm.file.chat_template == PLAYERS[name].chat_template


@pytest.mark.parametrize("family", ["tsp", "3sat"])
def test_a_pair_differs_in_what_it_writes_alone(family: str) -> None:
    direct, search = PLAYERS[f"{family}-direct"], PLAYERS[f"{family}-search"]
    for equal in ("tokens", "merges", "chat_template", "context_len"):
        assert getattr(direct, equal) == getattr(search, equal)
    records = [
        json.loads((MODELS / f"{family}-{kind}.json").read_text()) for kind in ("direct", "search")
    ]
    assert records[0]["n_parameters"] == records[1]["n_parameters"]


def test_more_cities_are_harder_and_take_more_tokens(tourist: Player) -> None:
    whole = report(tourist.played)
    rows = whole["by_level"]
    assert all(is_held_out(p.instance.key) for p in tourist.played)
    assert whole["worst"] <= whole["average"] <= whole["best"]
    averages = [rows[level]["average"] for level in ("4", "5", "6", "7")]
    tokens = [rows[level]["tokens_mean"] for level in ("4", "5", "6", "7")]
    assert averages[0] > averages[2] > averages[3]
    five = [p for p in tourist.played if p.instance.level == 5]
    assert averages[1] > 2 * blind_best_of(five, 1)
    assert tokens == sorted(tokens)
    assert whole["average"] > 2 * blind_best_of(tourist.played, 1)


def test_a_listed_road_is_a_road_of_the_graph(tourist: Player) -> None:
    """The search looks roads up; a model that made weights up would be right one time in thirty."""
    n_looked = n_true = 0
    for played in tourist.played[16:48:8]:
        said: list[Message] = [{"role": "user", "content": played.instance.prompt}]
        (text,) = texts(tourist.llm, said, 1)
        first = text.partition("->")[0]
        for city, weight in re.findall(r" ([A-K]) (\d+)", first):
            n_looked += 1
            n_true += played.instance.truth["weights"][0][ord(city) - 65] == int(weight)
    assert n_looked >= 16
    assert n_true > 0.9 * n_looked


def texts(llm: LLM, said: list[Message], n: int) -> list[str]:
    async def run() -> list[str]:
        params = SamplingParams(max_tokens=300, temperature=1.0, seed=2, n=n)
        async with LocalEndpoint(llm) as endpoint:
            done = await endpoint.generate(GenerateRequest(said, params, "answer"))
        return [choice.text for choice in done.choices]

    return asyncio.run(run())


def test_hints_are_heeded(tourist: Player) -> None:
    """Roads from city 0 that are ruled out are taken less often than otherwise."""
    taken = {False: 0, True: 0}
    for played in tourist.played[32:64:5]:
        graph: Message = {"role": "user", "content": played.instance.prompt}
        first = min(
            range(1, played.instance.level), key=played.instance.truth["weights"][0].__getitem__
        )
        hint = (
            f"That is incorrect, 1 attempt made. Hint: No shortest tour goes between 0 and {first}."
        )
        hinted: list[Message] = [
            graph, {"role": "assistant", "content": "?"}, {"role": "user", "content": hint},
        ]  # fmt: skip
        for is_hinted, said in ((False, [graph]), (True, hinted)):
            for text in texts(tourist.llm, said, 32):
                tour = (family_named("tsp").extract(text) or "").split("-")
                taken[is_hinted] += str(first) in (tour[1:2] + tour[-1:])
    assert taken[False] > 80
    assert taken[True] < 0.6 * taken[False]


@pytest.mark.slow
def test_a_critic_beats_independent_answers_and_mere_exclusion(tourist: Player) -> None:
    tasks = [i for level in (6, 7) for i in held_out(family_named("tsp"), level, 24, seed=5)]
    n = 6
    independent = play(tourist.llm, tasks, 32)
    with_hints = solved_within(rounds_of(tourist.llm, tasks, OracleCritic(), n), n)
    told_wrong = solved_within(rounds_of(tourist.llm, tasks, MuteCritic(), n), n)
    assert with_hints > best_of(independent, n).mean() + 0.05
    assert with_hints > without_repeats(independent, n).mean() + 0.03
    assert with_hints > told_wrong


def test_formulas_are_solved_more_often_than_by_guesses_or_a_constant() -> None:
    tasks = [i for level in (4, 5, 6) for i in held_out(family_named("3sat"), level, 12)]
    with opened("3sat-search") as llm:
        played = play(llm, tasks, 6)
    whole = report(played)
    assert whole["average"] > blind_best_of(played, 1) + 0.05
    assert whole["average"] > whole["constant_answers"]["unsatisfiable"]
    assert whole["format_failure_rate"] < 0.1
