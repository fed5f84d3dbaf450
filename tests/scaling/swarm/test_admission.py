"""Examining judges: both orders, tie-breaks, and what a chance judge passes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from capax.endpoints import GenerateRequest
from capax.errors import ConfigError
from capax.scaling.swarm.admission import Challenge, examine, read_challenges
from capax.scaling.swarm.consensus import Node
from tests.scaling.strategies.talker import Talker

CHALLENGES = [Challenge(f"{i} + {i}?", f"right {i}", f"wrong {i}") for i in range(40)]


def judge(kind: str) -> Node:
    def reply(request: GenerateRequest, number: int) -> str:
        content: Any = request.prompt[1]["content"]  # type: ignore[index]
        right_first = content.index("right") < content.index("wrong")
        return {"good": "A" if right_first else "B", "first": "A", "none": "hm"}[kind]

    return Node(kind, Talker(reply))


def test_a_good_judge_passes_in_two_calls_each() -> None:
    node = judge("good")
    found = asyncio.run(examine(node, CHALLENGES))
    assert (found.right, found.asked) == (40, 40)
    assert found.tokens == node.endpoint.ledger.totals.tokens
    assert node.endpoint.ledger.totals.n_calls == 80


@pytest.mark.parametrize("kind", ["first", "none"])
def test_a_judge_that_tells_nothing_apart_is_at_chance(kind: str) -> None:
    node = judge(kind)
    found = asyncio.run(examine(node, CHALLENGES))
    assert 8 <= found.right <= 32
    assert node.endpoint.ledger.totals.n_calls > 80


def test_challenges_are_read_with_care(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"question": "q", "better": "b", "worse": "w"}\n\n')
    assert read_challenges(path) == [Challenge("q", "b", "w")]
    for bad in ("", "{}", "[" * 2000, '{"question": "q", "better": 1, "worse": "w"}'):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            read_challenges(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_challenges(tmp_path / "none")
