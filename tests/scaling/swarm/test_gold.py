"""Rounds on gold questions: who earns what by them, and who does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from capax.errors import ConfigError
from capax.scaling.swarm.admission import Challenge, read_challenges
from capax.scaling.swarm.consensus import Budget, SwarmResult, ask, best_standing
from capax.scaling.swarm.gold import (
    GoldRound,
    challenge_for,
    gold_due,
    gold_round,
    standing_in,
)
from capax.scaling.swarm.registry import Registry
from capax.scaling.swarm.reputation import Record, standings
from tests.scaling.swarm.test_consensus import QUESTION, member, swarm, wise

GOLD = Challenge(QUESTION, "It is 42", "It is 43", "exact")


def foolish(a: str, b: str) -> str:
    return {"so\nA": "so\nB", "so\nB": "so\nA", "U": "U"}[wise(a, b)]


def played(challenge: Challenge = GOLD) -> GoldRound:
    nodes = [
        member("It is 42", wise, id="good"),
        member("It is 41", wise, id="guesser"),
        member("It is 40", foolish, id="liar"),
    ]
    return asyncio.run(gold_round(challenge, nodes, ["good", "guesser", "liar"]))


def test_judges_earn_by_comparisons_of_a_right_with_a_wrong_answer() -> None:
    found = played()
    assert found.judged["good"][1] == found.judged["liar"][0] == 0
    assert found.judged["good"][0] >= 2
    assert found.judged["liar"][1] >= 2
    assert found.answered == {"good": (1, 0), "guesser": (0, 1), "liar": (0, 1)}


def test_without_a_checker_only_the_known_answers_say_anything() -> None:
    found = played(Challenge(QUESTION, GOLD.better, GOLD.worse))
    assert found.answered == {}
    known = {found.result.answers.index(text) for text in (GOLD.better, GOLD.worse)}
    between = [c for c in found.result.comparisons if {c.first, c.second} == known]
    assert sum(map(sum, found.judged.values())) == len(between)


def test_a_gold_round_looks_like_any_other_to_a_judge() -> None:
    """Its prompts are those of any round with the same question and answers."""
    judge = member("It is 41", wise, id="judge")
    asyncio.run(gold_round(GOLD, [judge], ["judge"]))
    compared = [r.prompt for r in judge.endpoint.asked if r.purpose == "compare"]  # type: ignore[attr-defined]
    texts = ("It is 41", GOLD.better, GOLD.worse)
    usual = [judge.prompts.compare(QUESTION, a, b) for a in texts for b in texts if a != b]
    assert len(compared) >= 4
    assert all(prompt in usual for prompt in compared)


def test_standing_decides_where_comparisons_say_nothing() -> None:
    nodes = swarm("It is 41", "It is 41", "It is 42")
    three = Budget(calls=3)  # answers only
    records = {
        "n0": Record().after_round(answered=(0, 20)),
        "n1": Record().after_round(answered=(1, 20)),
        "n2": Record().after_round(answered=(20, 0)),
    }
    known = standings(records, ["n0", "n1", "n2"])

    def run(standing: dict[str, float] | None) -> SwarmResult:
        return asyncio.run(ask(QUESTION, nodes, budget=three, standing=standing))

    assert run(None).answer == "It is 41"
    assert run(known).answer == "It is 42"
    assert not run(known).comparisons


def test_comparisons_outweigh_any_standing() -> None:
    nodes = swarm("It is 41", "It is 42")
    got = asyncio.run(ask(QUESTION, nodes, standing={"n0": 0.99, "n1": 0.01}))
    assert got.answer == "It is 42"


def test_the_nodes_of_the_highest_standing_answer() -> None:
    nodes = swarm("It is 41", "It is 42", "It is 40", "It is 39")
    standing = {"n0": 0.2, "n1": 0.9, "n2": 0.5, "n3": 0.1}
    got = asyncio.run(ask(QUESTION, nodes, standing=standing, max_answerers=2))
    assert {name for names in got.authors for name in names} == {"n1", "n2"}
    assert len({c.judge for c in got.comparisons}) == 4
    drawn = {best_standing(nodes, {}, 1, seed)[0].id for seed in range(40)}
    assert drawn == {"n0", "n1", "n2", "n3"}  # equals are drawn, not taken in order
    with pytest.raises(ConfigError, match="max_answerers"):
        asyncio.run(ask(QUESTION, nodes, max_answerers=0))


def test_a_newcomer_stands_above_who_is_known_to_be_wrong() -> None:
    found = standings({"poor": Record().after_round(answered=(2, 18))}, ["poor", "new"])
    assert found["new"] == pytest.approx(0.5 - (0.25 / 5) ** 0.5)
    assert found["poor"] < found["new"]


def test_a_block_lifts_its_place_in_rounds_but_not_its_standing(tmp_path: Path) -> None:
    """Four of ten push one wrong answer in every round; gold shows what their answers are worth."""
    rng = np.random.default_rng(0)
    registry = Registry(tmp_path / "swarm.sqlite")
    honest, block = [f"h{i}" for i in range(6)], [f"b{i}" for i in range(4)]
    for number in range(100):
        is_gold = number % 5 == 0
        right = {name: bool(rng.random() < 0.7) for name in honest} | dict.fromkeys(block, False)
        registry.add_round(
            {}, answered={n: (int(r), int(not r)) for n, r in right.items()} if is_gold else {},
            halves=dict.fromkeys(block, (1, 0)) | dict.fromkeys(honest, (0, 1)),
        )  # fmt: skip
    found = Registry(registry.path).standings([*honest, *block])
    assert max(found[n] for n in block) < min(found[n] for n in honest)
    assert Registry(registry.path).halves()["b0"] == (100, 0)


def test_whose_answers_end_in_the_upper_half() -> None:
    got = asyncio.run(ask(QUESTION, swarm("It is 41", "It is 41", "It is 42")))
    assert standing_in(got) == {"n2": (1, 0), "n0": (0, 1), "n1": (0, 1)}
    assert standing_in(asyncio.run(ask(QUESTION, swarm("It is 42")))) == {}


def test_gold_comes_at_its_rate_and_every_question_before_any_again() -> None:
    due = [gold_due(0.05, 3, n) for n in range(2000)]
    assert sum(due) == pytest.approx(100, abs=40)
    assert not any(gold_due(0.0, 3, n) for n in range(50))
    challenges = [Challenge(str(i), "a", "b") for i in range(7)]
    lap = [challenge_for(challenges, 1, n).question for n in range(14)]
    assert sorted(lap[:7]) == sorted(lap[7:]) == [str(i) for i in range(7)]
    assert lap[:7] != lap[7:]


def test_a_checker_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_text('{"question": "q", "better": "a", "worse": "b", "checker": "oracle"}\n')
    with pytest.raises(ConfigError, match=r"line 1.*oracle"):
        read_challenges(file)
