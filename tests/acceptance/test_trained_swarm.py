"""The swarm trained here: judges that can tell, and a minority that is right and wins (5, 8, 9).

The long run with intervals is `benchmarks.swarm`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.swarm import FORM, judge_accuracy, open_nodes, question_of
from capax.scaling.swarm.admission import examine, read_challenges
from capax.scaling.swarm.bench import bench, calibrate, summarize
from capax.scaling.swarm.consensus import Node, ask, strengths
from capax.scaling.swarm.reputation import weights
from capax.scaling.tasks import read_tasks
from capax.training.arithmetic import is_held_out
from capax.training.swarm import NODES

MODELS = Path(__file__).parents[2] / "models" / "swarm"
GOLD = read_challenges(MODELS / "gold.jsonl")
QUESTIONS = [question_of(task) for task in read_tasks(MODELS / "questions.jsonl")]
T = TypeVar("T")


def with_nodes(use: Callable[[dict[str, Node]], Awaitable[T]]) -> T:
    async def run() -> T:
        async with AsyncExitStack() as stack:
            return await use(await open_nodes(MODELS, stack))

    return asyncio.run(run())


@pytest.mark.parametrize("name", NODES)
def test_the_file_is_what_its_record_says(name: str) -> None:
    record = json.loads((MODELS / f"{name}.json").read_text())
    content = (MODELS / f"{name}.gguf").read_bytes()
    assert record["sha256"][f"{name}.gguf"] == hashlib.sha256(content).hexdigest()
    base = (MODELS.parent / "arithmetic" / "search.gguf").read_bytes()
    assert record["recipe"]["base"] == hashlib.sha256(base).hexdigest()


def test_nothing_asked_was_learnt_and_gold_is_apart() -> None:
    asked = {question.text for question in QUESTIONS}
    assert len(asked) == len(QUESTIONS) >= 100
    assert all(is_held_out(text) for text in asked)
    assert not asked & {challenge.question for challenge in GOLD}


def test_judges_can_tell_and_the_deaf_one_cannot() -> None:
    async def use(nodes: dict[str, Node]) -> tuple[dict[str, float], int, int]:
        found = {
            n: (await judge_accuracy(node, GOLD[:16]))["per_call"] for n, node in nodes.items()
        }
        passed = (await examine(nodes["node0"], GOLD[:20])).right
        return found, passed, (await examine(nodes["deaf"], GOLD[:20])).right

    per_call, good, deaf = with_nodes(use)
    assert all(per_call[name] >= 0.65 for name in per_call if name != "deaf")
    assert per_call["deaf"] < 0.6
    assert good >= 17 > deaf


def test_consensus_beats_the_vote_on_the_same_answers() -> None:
    async def use(nodes: dict[str, Node]) -> dict[str, float]:
        five = [node for name, node in nodes.items() if name != "deaf"]
        records = await calibrate(five, GOLD[:20])
        rows = await bench(five, QUESTIONS[:24], records)
        return {name: share.accuracy for name, share in summarize(rows).items()}

    right = with_nodes(use)
    assert right["reputation"] >= right["vote"] + 0.05
    assert right["vote"] <= right["any"] <= 1
    assert right["reputation"] <= right["any"]


def test_stored_verdicts_give_the_same_bits_and_prompts_show_digits_only() -> None:
    async def use(nodes: dict[str, Node]) -> None:
        five = [node for name, node in nodes.items() if name != "deaf"]
        given = dict(zip((n.id for n in five), ("3", "4 yes so yes", "5?", "4", "9"), strict=True))
        got = await ask(QUESTIONS[0].text, five, answers=given)
        trusted = weights(await calibrate(five, GOLD[:6]))
        for by in (dict.fromkeys(given, 1.0), trusted):
            kept = range(len(got.answers))
            first = strengths(got.answers, kept, got.comparisons, by)
            assert first == strengths(got.answers, kept, tuple(got.comparisons), by)

    with_nodes(use)
    shown = FORM.compare(" 1 x + 1 = 2 mod 11 :", "1 ? 5 yes so yes", "4")
    assert shown == " 1 x + 1 = 2 mod 11 : 15 ? 4 ?"
