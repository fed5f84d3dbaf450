"""Consensus against votes: nobody sees the truth before choosing, and tokens are counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from capax import SamplingParams
from capax.errors import ConfigError
from capax.scaling.swarm.admission import Challenge
from capax.scaling.swarm.bench import METHODS, Question, bench, calibrate, gain, summarize, voted
from capax.scaling.swarm.consensus import Node
from capax.scaling.swarm.reputation import weights
from tests.scaling.strategies.talker import Talker
from tests.scaling.swarm.test_consensus import shown

GOLD = [Challenge(f"{i}?", "42", "17") for i in range(30)]


def node(name: str, answer: str, better: Callable[[str, str], str]) -> Node:
    def reply(request, number):  # type: ignore[no-untyped-def]
        if request.purpose in ("answer", "more"):
            return answer
        return "GOOD" if request.purpose == "filter" else better(*shown(request))

    return Node(name, Talker(reply), SamplingParams(max_tokens=8))


def wise(a: str, b: str) -> str:
    return "A" if "42" in a else "B"


def false(a: str, b: str) -> str:
    return "B" if "42" in a else "A"


def test_a_right_minority_wins_where_judges_know_better() -> None:
    nodes = [node("a", "42", wise), node("b", "17", wise), node("c", "17", wise),
             node("d", "9", false), node("e", "17", false), node("f", "5", false)]  # fmt: skip
    questions = [Question(f"what is it, {i}?", lambda text: text == "42") for i in range(6)]

    async def run():  # type: ignore[no-untyped-def]
        records = await calibrate(nodes, GOLD)
        return records, await bench(nodes, questions, records)

    records, rows = asyncio.run(run())
    trusted = weights(records)
    assert all(trusted[name] > 0 for name in "abc")
    assert all(trusted[name] == 0 for name in "def")
    found = summarize(rows)
    assert list(found) == list(METHODS)
    assert found["vote"].accuracy == found["vote, same tokens"].accuracy == 0
    assert found["reputation"].accuracy == found["any"].accuracy == found["best node"].accuracy == 1
    assert found["mean node"].accuracy == pytest.approx(1 / 6)
    assert found["vote, same tokens"].tokens <= found["reputation"].tokens
    assert found["vote"].tokens < found["reputation"].tokens
    assert gain(rows, "reputation", "vote") == (1, 1, 1)


def test_ties_of_a_vote_are_drawn_by_lot() -> None:
    question = Question("?", lambda text: text == "a")
    assert voted(["a", "a", "b"], question) == 1
    assert voted(["a", "b"], question) == 0.5
    assert voted(["a", "b", "b", "c", "c", "c"], question) == 0


def test_a_swarm_needs_somebody_who_answers() -> None:
    judge = Node("a", Talker(lambda request, number: "A"), answers=False)
    with pytest.raises(ConfigError, match="no node answers"):
        asyncio.run(bench([judge], [], {}))
